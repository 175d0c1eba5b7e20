// The pages of models: adding one (the starter with one press, or a folder or file), deleting, and a tree that keeps itself fresh.

import { $, $$, CallError, call, showProblems, t, toast } from "./kit.js";
import { deleting, keepFresh } from "./parts.js";

const tree = $("#tree");

deleting("models", (button) => {
  if (button.dataset.then) location.href = button.dataset.then;
  else look();
});

const adding = () => $$('[data-status="adding"]', tree).map((node) => node.dataset.model);
let before = tree ? adding() : [];
const look = tree ? keepFresh(tree, () => (adding().length ? 1 : 5), () => {
  for (const id of before) {
    const now = $(`[data-model="${CSS.escape(id)}"]`, tree);
    if (now?.dataset.status === "ready") toast(t("add.ready", { name: id }));
    if (now?.dataset.status === "broken") toast(t("add.broken", { name: id }), true);
  }
  before = adding();
}) : null;

/** Ask the server to add a model; it goes on by itself and shows its progress in the tree. */
async function add(source, name) {
  const info = await call("POST", "models", name ? { source, name } : { source });
  toast(t("add.started", { name: info.name }));
  await look();
}

async function busy(button, action, failed) {
  button.disabled = true;
  button.classList.add("busy");
  try {
    await action();
  } catch (error) {
    if (!(error instanceof CallError)) throw error;
    failed(error);
  } finally {
    button.disabled = false;
    button.classList.remove("busy");
  }
}

function addPage() {
  const dialog = $("#add-dialog");
  const form = $("#add-form");
  const problems = $("#add-problems");
  $("#add").addEventListener("click", () => { problems.replaceChildren(); dialog.showModal(); });
  $("#add-cancel").addEventListener("click", () => dialog.close());
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const source = form.elements.source;
    const path = source.value.trim();
    const failed = (error) => {
      showProblems(problems, error, t("add.failed"));
      source.setAttribute("aria-invalid", "true");
      source.focus();
    };
    if (!path) { failed([{ code: "missing_value", message: t("add.missing") }]); return; }
    busy($("[type=submit]", form), async () => {
      await add(path, form.elements.name.value.trim());
      form.reset();
      source.removeAttribute("aria-invalid");
      dialog.close();
    }, failed);
  });
  tree.addEventListener("click", (event) => {
    const button = event.target.closest("[data-starter]");
    if (!button) return;
    busy(button, () => add("starter"), (error) => {
      toast(error.problems.map((problem) => [problem.message, problem.remedy].filter(Boolean).join(" ")).join(" "), true);
    });
  });
}

if (tree) addPage();
