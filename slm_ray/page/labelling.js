// One pair at a time, in the drawn order: said by button or key, kept in this browser, downloaded as JSON Lines.
// `fill` is that of page.js: text from data enters the page as text nodes only.

const SAYINGS = ["A", "tie", "B"];
const at = (id) => document.getElementById(id);
let data = null;
let place = 0;
let said = new Map();

function put(node, text) {
  node.replaceChildren();
  fill(node, text);
}

async function read() {
  const node = at("data");
  if (node.dataset.packed !== "gzip") return JSON.parse(node.textContent);
  const bytes = Uint8Array.from(atob(node.textContent), (sign) => sign.charCodeAt(0));
  return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).json();
}

const store = () => `slm_ray labels ${data.queue}`;

function recalled() {
  try {
    const kept = JSON.parse(localStorage.getItem(store()) || "{}");
    at("labeller").value = kept.labeller || "";
    return new Map(Object.entries(kept.said || {}));
  } catch {
    return new Map(); // a browser may refuse to keep anything for a file
  }
}

function keep() {
  try {
    localStorage.setItem(store(), JSON.stringify({ labeller: at("labeller").value, said: Object.fromEntries(said) }));
    at("kept").textContent = "";
  } catch {
    at("kept").textContent = "This browser keeps nothing: download before you close the page.";
  }
}

function firstOpen() {
  const open = data.rows.findIndex((row) => !said.has(row.id));
  return open < 0 ? data.rows.length - 1 : open;
}

function show() {
  const row = data.rows[place];
  const open = data.rows.findIndex((one) => !said.has(one.id));
  const done = open < 0 ? data.rows.length : open; // without a gap
  const look = data.looks.find((one) => one > done);
  const left = look === undefined ? "all that a verdict takes" : `${look - done} more to the next verdict`;
  at("progress").textContent = `pair ${data.rows.length ? place + 1 : 0} of ${data.rows.length}, ${said.size} labelled, ${left}`;
  at("save").disabled = said.size === 0;
  if (!row) return;
  put(at("prompt"), row.prompt);
  at("expected").hidden = row.target === null;
  put(at("target"), row.target ?? "");
  for (const side of ["A", "B"]) {
    put(at(side), row[side]);
    at(side).scrollTop = 0;
  }
  for (const saying of SAYINGS) at(`say-${saying}`).setAttribute("aria-pressed", String(said.get(row.id) === saying));
}

function go(to) {
  place = Math.min(Math.max(to, 0), data.rows.length - 1);
  show();
}

function say(saying) {
  const row = data.rows[place];
  if (!row) return;
  said.set(row.id, saying);
  keep();
  go(place + 1);
}

function save() {
  const labeller = at("labeller").value.trim();
  if (!labeller) {
    at("labeller").focus();
    at("kept").textContent = "Write your initials first.";
    return;
  }
  const lines = data.rows.filter((row) => said.has(row.id)).map((row) =>
    `${JSON.stringify({ queue: data.queue, id: row.id, labeller, prefers: said.get(row.id), A: row.A, B: row.B })}\n`);
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob(lines, { type: "application/jsonl" }));
  link.download = "labels.jsonl";
  link.click();
  URL.revokeObjectURL(link.href);
}

const KEYS = {
  1: () => say("A"), 2: () => say("tie"), 3: () => say("B"), s: save,
  ArrowLeft: () => go(place - 1), ArrowRight: () => go(place + 1),
};

read().then((found) => {
  data = found;
  said = recalled();
  for (const saying of SAYINGS) at(`say-${saying}`).addEventListener("click", () => say(saying));
  at("back").addEventListener("click", () => go(place - 1));
  at("next").addEventListener("click", () => go(place + 1));
  at("save").addEventListener("click", save);
  at("labeller").addEventListener("input", keep);
  document.addEventListener("keydown", (event) => {
    if (event.target.tagName === "INPUT" || event.ctrlKey || event.metaKey || event.altKey) return;
    const act = KEYS[event.key];
    if (!act) return;
    event.preventDefault();
    act();
  });
  place = firstOpen();
  show();
});
