// What pages can do with script, and do without: buttons that copy, and parts that keep themselves up to date.
"use strict";

const MOST_ROWS = 200;
const SAID_MS = 1500;

// ---------------------------------------------------------------- copy

for (const button of document.querySelectorAll("[data-copy]")) {
  button.hidden = !navigator.clipboard;
  button.addEventListener("click", async () => {
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
}

// ---------------------------------------------------------------- live
//
// <div data-live="URL"> hears events from there. An event's data is HTML that our server escaped. One that is called
// as a data-part within becomes what stands in it; one that is called as a data-rows is put above what stands in it.

for (const live of document.querySelectorAll("[data-live]")) {
  if (!window.EventSource) {
    comeAgain();
    continue;
  }
  const source = new EventSource(live.dataset.live);
  for (const part of live.querySelectorAll("[data-part]")) {
    source.addEventListener(part.dataset.part, (event) => part.replaceChildren(piecesOf(event.data)));
  }
  for (const rows of live.querySelectorAll("[data-rows]")) {
    source.addEventListener(rows.dataset.rows, (event) => {
      const pieces = piecesOf(event.data);
      for (const row of pieces.children) row.classList.add("new");
      rows.prepend(pieces);
      while (rows.children.length > MOST_ROWS) rows.lastElementChild.remove();
    });
  }
  source.addEventListener("error", () => {
    // While it tries again by itself there is nothing to do; it gives up where it is told no.
    if (source.readyState === EventSource.CLOSED) comeAgain();
  });
}
if (document.body.dataset.refresh && !document.querySelector("[data-live]")) comeAgain();

function piecesOf(html) {
  const template = document.createElement("template");
  template.innerHTML = html;
  return template.content;
}

// Not while somebody looks elsewhere, or is about to write something.
function comeAgain() {
  const seconds = Number(document.body.dataset.refresh) || 30;
  setInterval(() => {
    if (!document.hidden && !document.activeElement.matches("input, select, textarea")) location.reload();
  }, seconds * 1000);
}
