"use strict";
// What models wrote reaches the page as text (textContent), or as HTML that the server has made
// of Markdown, in which nothing is the model's own. An answer names its question, so that one
// that is sent twice, or from a second window, changes nothing.

const PAUSE = 300; // ms in which a new pair takes no answer: a double click is one answer
const token = new URLSearchParams(location.search).get("token") || "";
const at = (id) => document.getElementById(id);
const choosing = document.querySelectorAll("[data-choice]");
let view = null;
let busy = false;
let shownAt = 0;
let markdown = false;
try { markdown = localStorage.getItem("markdown") === "1"; } catch { /* no storage: a wish of this page */ }

function fill(element, part) {
  element.classList.toggle("rendered", "html" in part);
  element.classList.toggle("empty", part.text === "");
  if ("html" in part) {
    element.innerHTML = part.html;
  } else {
    element.textContent = part.text;
  }
}

function messageOf(part) {
  const role = document.createElement("p");
  role.className = "role";
  role.textContent = part.role;
  const text = document.createElement("div");
  text.className = "text";
  text.dir = "auto";
  fill(text, part);
  return part.role ? [role, text] : [text];
}

function show(next) {
  const before = view && view.question && view.question.id;
  view = next;
  const question = view.question;
  at("pair").hidden = !question;
  at("end").hidden = !!question;
  if (question) {
    at("prompt").replaceChildren(...question.prompt.flatMap(messageOf));
    question.responses.forEach((part, index) => fill(at(`response-${index + 1}`), part));
    at("count").textContent = `Pair ${view.done + 1} of ${view.total} · ${question.batch}`;
  } else {
    at("count").textContent = `${view.done} of ${view.total}`;
    at("end-text").textContent = view.waiting
      ? `The run waits for ${view.waiting} labels of others.`
      : "The run has every label that it waits for: give its command again to go on. This page shows what it asks next.";
  }
  at("agreement").textContent = view.agreement;
  at("agreement").hidden = !view.agreement;
  at("who").textContent = `${view.again ? "disagreements · " : ""}${view.annotator}`;
  at("progress").max = view.total || 1;
  at("progress").value = view.total ? view.done : 1;
  if (before !== (question && question.id)) {
    shownAt = performance.now();
    scrollTo(0, 0);
  }
  enable();
}

function enable() {
  choosing.forEach((button) => { button.disabled = !view || !view.question; });
  at("undo").disabled = !view || view.last === null;
  at("markdown").setAttribute("aria-pressed", String(markdown));
}

function notice(text) {
  at("notice").textContent = text;
  at("notice").hidden = !text;
}

async function ask(path, body) {
  if (busy) return;
  busy = true;
  try {
    const headers = { Authorization: `Bearer ${token}` };
    const options = { headers, cache: "no-store" };
    if (body) {
      headers["Content-Type"] = "application/json";
      options.method = "POST";
      options.body = JSON.stringify({ ...body, markdown });
    }
    const response = await fetch(path, options);
    const told = await response.json();
    notice(told.error ? told.error[0].toUpperCase() + told.error.slice(1) : "");
    if ("done" in told) show(told);
  } catch {
    notice("No answer from pyfast label: is it still running? The pair that is shown may not be kept; try again, or follow its new link.");
  } finally {
    busy = false;
  }
}

const look = () => ask(`api/view?markdown=${markdown ? 1 : 0}`);

function choose(choice) {
  if (!view || !view.question || performance.now() - shownAt < PAUSE) return;
  ask("api/answer", { id: view.question.id, choice });
}

function undo() {
  if (!view || view.last === null || performance.now() - shownAt < PAUSE) return;
  ask("api/undo", { place: view.last });
}

function toggle() {
  markdown = !markdown;
  try { localStorage.setItem("markdown", markdown ? "1" : "0"); } catch { /* as above */ }
  enable();
  look();
}

choosing.forEach((button) => button.addEventListener("click", (event) => {
  if (event.detail < 2) choose(button.dataset.choice);
}));
at("undo").addEventListener("click", (event) => { if (event.detail < 2) undo(); });
at("markdown").addEventListener("click", toggle);
addEventListener("keydown", (event) => {
  if (event.repeat && ["Enter", " "].includes(event.key)) event.preventDefault(); // a key held down
  if (event.repeat || event.ctrlKey || event.altKey || event.metaKey) return;
  const key = event.key.toLowerCase();
  if (["1", "2", "s"].includes(key)) choose(key);
  else if (key === "u") undo();
  else if (key === "m") toggle();
});
addEventListener("focus", () => { if (view) look(); }); // another window may have been at work
look();
