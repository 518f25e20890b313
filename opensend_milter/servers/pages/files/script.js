// What pages can do with script, and do without: buttons that copy, and parts that keep themselves up to date.
"use strict";

const SAID_MS = 1500;

// ---------------------------------------------------------------- copy

letCopy(document);
document.addEventListener("click", async (event) => {
  const button = event.target.closest("[data-copy]");
  if (!button) return;
  const text = button.closest(".copyable").querySelector("code").textContent;
  let said = "Copied";
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    said = "Not copied";
  }
  button.textContent = said;
  setTimeout(() => { button.textContent = "Copy"; }, SAID_MS);
});

function letCopy(where) {
  for (const button of where.querySelectorAll("[data-copy]")) button.hidden = !navigator.clipboard;
}

// ---------------------------------------------------------------- live
//
// <div data-live="URL"> hears events from there. An event's data is HTML that our server escaped: it becomes what stands
// in the data-part of its name. The box within data-pause says whether to hear. What has a data-row that was not there
// before is shown to be new.

for (const live of document.querySelectorAll("[data-live]")) {
  if (!window.EventSource) {
    comeAgain();
    continue;
  }
  let source = heard(live);
  for (const pause of live.querySelectorAll("[data-pause]")) {
    pause.hidden = false;
    pause.addEventListener("change", (event) => {
      source.close();
      if (event.target.checked) source = heard(live);
    });
  }
}
if (document.body.dataset.refresh && !document.querySelector("[data-live]")) comeAgain();

function heard(live) {
  const source = new EventSource(live.dataset.live);
  for (const part of live.querySelectorAll("[data-part]")) {
    source.addEventListener(part.dataset.part, (event) => renew(part, event.data));
  }
  source.addEventListener("error", () => {
    // While it tries again by itself there is nothing to do; it gives up where it is told no.
    if (source.readyState === EventSource.CLOSED) comeAgain();
  });
  return source;
}

// Not under the hands of somebody who walks through it by keyboard, or marks a text; the next event brings it too.
function renew(part, html) {
  const marked = document.getSelection();
  if (part.querySelector(":focus-visible") || (!marked.isCollapsed && part.contains(marked.anchorNode))) return;
  const before = new Set(Array.from(part.querySelectorAll("[data-row]"), (row) => row.dataset.row));
  const pieces = piecesOf(html);
  for (const row of before.size ? pieces.querySelectorAll("[data-row]") : []) {
    if (!before.has(row.dataset.row)) row.classList.add("new");
  }
  letCopy(pieces);
  part.replaceChildren(pieces);
}

function piecesOf(html) {
  const template = document.createElement("template");
  template.innerHTML = html;
  return template.content;
}

// Not while somebody looks elsewhere, or is about to write something.
function comeAgain() {
  const seconds = Number(document.body.dataset.refresh) || 30;
  setInterval(() => {
    const isPaused = document.querySelector("[data-pause] input:not(:checked)");
    if (!isPaused && !document.hidden && !document.activeElement.matches("input, select, textarea")) location.reload();
  }, seconds * 1000);
}
