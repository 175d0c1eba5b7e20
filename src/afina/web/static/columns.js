// Saying which column of a table holds what. Loaded where a table has to be explained; the server draws what the rows become.

import { $, $$, CallError, call, showProblems, t } from "./kit.js";

const chosen = (form) => Object.fromEntries($$("select", form).map((select) => [select.name, select.value || null]));

/** Follow the form in `box`: `show(query)` draws it anew, `changed()` is called when the columns are remembered. */
export function explain(box, address, show, changed) {
  const ask = (form) => show(new URLSearchParams(Object.entries(chosen(form)).map(([part, column]) => [part, column ?? ""])));
  box.addEventListener("change", (event) => {
    const form = event.target.closest("form");
    if (form) ask(form);
  });
  // somebody may have been quicker than this module
  if ($$("form select", box).some((select) => select.value !== ($("option[selected]", select)?.value ?? ""))) ask($("form", box));
  box.addEventListener("submit", async (event) => {
    event.preventDefault();
    $("[type=submit]", box).disabled = true;
    try {
      await call("PUT", `${address}/columns`, chosen(event.target));
      await changed();
    } catch (error) {
      if (!(error instanceof CallError)) throw error;
      showProblems($("#columns-problems"), error, t("fix.failed"));
      $("[type=submit]", box).disabled = false;
    }
  });
}
