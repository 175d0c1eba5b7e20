// "Make this a row": an answer of the chat, corrected, becomes an example of a dataset. Loaded when it is first asked for.
// Knows nothing of the chat but the messages it is given.

import { $, CallError, call, el, memory, problemNotice, t, toast } from "./kit.js";

const NEW = "";

/** Ask which dataset, let the answer be corrected, and keep it. `messages` are those before the answer, the question last. */
export async function makeRow(messages, answer) {
  let datasets;
  try {
    datasets = (await call("GET", "datasets")).filter((item) => !["plain", "text", "preference"].includes(item.format));
  } catch (error) {
    if (!(error instanceof CallError)) throw error;
    toast(error.problems[0].message, true);
    return;
  }
  const before = messages.slice(0, -1);
  const last = memory.get("row.dataset");
  const choose = el("select", { id: "row-dataset" }, datasets.map((item) => el("option", { value: item.name, selected: item.name === last }, item.name)),
    el("option", { value: NEW, selected: !datasets.length }, t("row.new")));
  const name = el("input", { type: "text", id: "row-name", maxlength: 100, value: t("row.name.default"), autocomplete: "off" });
  const named = el("div", { class: "field" }, el("label", { for: "row-name" }, t("row.name")), name);
  const question = el("textarea", { id: "row-question", rows: 3 }, messages.at(-1).content);
  const said = el("textarea", { id: "row-answer", rows: 8 }, answer);
  const whole = el("input", { type: "checkbox", checked: before.length > 0 });
  const problems = el("div", {});
  const submit = el("button", { class: "button primary", type: "submit" }, t("row.save"));
  const dialog = el("dialog", { class: "dialog wide", "aria-labelledby": "row-title" }, el("form", { novalidate: true },
    el("h2", { id: "row-title" }, t("row.title")), el("p", {}, t("row.text")),
    el("div", { class: "field" }, el("label", { for: "row-dataset" }, t("row.dataset")), choose), named,
    el("div", { class: "field" }, el("label", { for: "row-question" }, t("row.question")), question),
    el("div", { class: "field" }, el("label", { for: "row-answer" }, t("row.answer")), said),
    before.length ? el("label", { class: "row" }, whole, t("row.before")) : null, problems,
    el("div", { class: "row end" }, el("button", { class: "button quiet", type: "button", onclick: () => dialog.close() }, t("cancel")), submit)));
  const follow = () => { named.hidden = choose.value !== NEW; };
  choose.addEventListener("change", follow);
  follow();
  dialog.addEventListener("close", () => dialog.remove());
  $("form", dialog).addEventListener("submit", async (event) => {
    event.preventDefault();
    submit.disabled = true;
    const row = { messages: [...(whole.checked ? before : []), { role: "user", content: question.value }, { role: "assistant", content: said.value }] };
    try {
      toast(t("row.done", { name: await keep(choose.value, name.value.trim(), row) }));
      dialog.close();
    } catch (error) {
      if (!(error instanceof CallError)) throw error;
      const notice = problemNotice(error.problems, t("row.failed"));
      problems.replaceChildren(notice);
      notice.focus();
      submit.disabled = false;
    }
  });
  document.body.append(dialog);
  dialog.showModal();
  said.focus();
}

/** Put the row into a dataset, or begin a new one with it; gives the dataset's name. */
async function keep(dataset, name, row) {
  if (dataset !== NEW) {
    await call("POST", `datasets/${encodeURIComponent(dataset)}/rows`, { rows: [row] });
    memory.set("row.dataset", dataset);
    return dataset;
  }
  if (row.messages.some((message) => !message.content.trim())) throw new CallError(422, [{ code: "empty_answer", message: t("row.empty") }]);
  const info = await call("POST", "datasets/written", { name, text: `${JSON.stringify(row)}\n` });
  memory.set("row.dataset", info.name);
  return info.name;
}
