// The rows of every track: drawn as they are scrolled to, filtered, searched, walked by keys, rated and exported.
// Ratings stay in this browser until they are exported.

const BATCH = 60;
const CHOICES = 300; // values of tags, or issues, to choose from
const views = [];
let active = null;

// An outcome as people say it: a graded answer by its score, never as right or wrong.
function outcome(answer) {
  return answer.o === "graded" ? percent(answer.v) : answer.o === "unscored" ? "no score" : answer.o;
}

function copier(caption, text) {
  const button = make("button", "copy", caption);
  button.type = "button";
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(text());
      button.textContent = "Copied";
    } catch {
      button.textContent = "The browser did not let it be copied";
    }
    setTimeout(() => { button.textContent = caption; }, 2000);
  });
  return button;
}

// Words that an answer lacks: shown struck out, and no part of the text that is selected or copied.
function missing(words) {
  const node = make("del");
  node.dataset.text = words.replace(UNSEEN, (sign) => `⟨${code(sign)}⟩`);
  return node;
}

class View {
  constructor(root, data) {
    this.root = root;
    this.data = data;
    this.list = root.querySelector(".list");
    root.querySelector(".controls").hidden = false;
    this.search = root.querySelector("input[type='search']");
    this.said = root.querySelector(".shown");
    this.kind = "all";
    this.at = -1;
    this.place = `slm_ray ratings ${root.dataset.track} ${data.run}`;
    this.ratings = this.recalled();
    this.unkept = false;
    this.haystack = null;
    for (const input of root.querySelectorAll("input[type='radio']")) {
      input.addEventListener("change", () => this.show(input.value));
      if (input.checked) this.kind = input.value; // browsers keep a choice over a reload
    }
    let wait = 0;
    for (const change of ["input", "search"]) { // Escape clears the field and tells of it by the second alone
      this.search.addEventListener(change, () => {
        clearTimeout(wait);
        wait = setTimeout(() => this.show(this.kind), 120);
      });
    }
    this.slice = this.choice(".slice", (row) => Object.entries(row.g).map(([tag, value]) => `${tag}: ${value}`));
    this.issue = this.choice(".issue", (row) => row.a.flatMap((one) => (one.s || []).map((issue) => issue.replaceAll("_", " "))));
    for (const button of root.querySelectorAll("[data-show]")) {
      button.addEventListener("click", () => this.choose(button.dataset.show));
    }
    root.querySelector(".export").addEventListener("click", () => this.exportRatings());
    this.tell();
    root.addEventListener("focusin", () => { active = this; });
    this.end = make("div", "end");
    new IntersectionObserver((seen) => { if (seen.some((one) => one.isIntersecting)) this.draw(); }, { root: this.list, rootMargin: "800px" }).observe(this.end);
    this.show(this.kind, this.data.open);
  }

  // A list of what rows have of a kind, with how many have it, the most frequent first; hidden where none has.
  choice(selector, values) {
    const select = this.root.querySelector(selector), counts = new Map();
    const having = this.data.rows.map((row) => new Set(values(row)));
    for (const each of having) for (const value of each) counts.set(value, (counts.get(value) || 0) + 1);
    const option = (value, text) => Object.assign(make("option", "", text), { value });
    const most = [...counts].sort((one, other) => other[1] - one[1] || one[0].localeCompare(other[0])).slice(0, CHOICES);
    select.replaceChildren(option("", "any"), ...most.map(([value, n]) => option(value, `${value} (${n})`)));
    select.closest("label").hidden = counts.size === 0;
    select.addEventListener("change", () => this.show(this.kind));
    return { select, having };
  }

  // Show the rows of a filter, as if it had been pressed.
  choose(kind) {
    const input = this.root.querySelector(`input[value='${kind}']`);
    input.checked = true;
    this.show(kind);
  }

  // Open one row, whatever is filtered; false where the page does not have it.
  reveal(id) {
    const place = this.data.rows.findIndex((row) => row.i === id);
    if (place < 0) return false;
    this.search.value = this.slice.select.value = this.issue.select.value = "";
    this.choose("all");
    while (this.drawn <= place) this.draw();
    const box = this.list.children[place];
    box.open = true;
    box.querySelector("summary").focus();
    box.scrollIntoView({ block: "nearest" });
    return true;
  }

  recalled() {
    try {
      return new Map(Object.entries(JSON.parse(localStorage.getItem(this.place) || "{}")));
    } catch {
      return new Map(); // a browser may refuse to keep anything for a file
    }
  }

  keep() {
    try {
      localStorage.setItem(this.place, JSON.stringify(Object.fromEntries(this.ratings)));
      this.unkept = false;
    } catch {
      this.unkept = this.ratings.size > 0;
    }
    this.tell();
  }

  tell() {
    const button = this.root.querySelector(".export");
    button.textContent = `Export ${this.ratings.size} rated rows (JSONL)`;
    button.disabled = this.ratings.size === 0;
  }

  matches() {
    const wanted = this.search.value.trim().toLowerCase();
    if (wanted && !this.haystack) {
      this.haystack = this.data.rows.map((row) => [row.i, row.q, row.x, ...Object.values(row.g), ...row.a.map((one) => one.t || one.f || "")].join("\n").toLowerCase());
    }
    const found = [];
    this.data.rows.forEach((row, place) => {
      if (this.kind !== "all" && !row.k.includes(this.kind)) return;
      if (wanted && !this.haystack[place].includes(wanted)) return;
      if ([this.slice, this.issue].some(({ select, having }) => select.value && !having[place].has(select.value))) return;
      found.push(place);
    });
    return found;
  }

  show(kind, opened) {
    this.kind = kind;
    this.found = this.matches();
    this.drawn = 0;
    this.at = -1;
    this.list.replaceChildren(this.end);
    this.said.textContent = `${this.found.length} of ${this.data.rows.length} rows`;
    this.draw();
    const place = this.found.indexOf(opened);
    if (place >= 0 && place < this.drawn) this.list.children[place].open = true;
  }

  draw() {
    const until = Math.min(this.found.length, this.drawn + BATCH);
    const batch = document.createDocumentFragment();
    for (; this.drawn < until; this.drawn += 1) batch.append(this.row(this.data.rows[this.found[this.drawn]]));
    this.list.insertBefore(batch, this.end);
  }

  row(row) {
    const box = make("details", "row");
    const head = make("summary");
    head.append(make("span", "title", row.t));
    const marks = make("span", "marks");
    for (const answer of row.a) {
      const arm = this.data.arms[answer.m];
      marks.append(make("span", `mark ${answer.o}`, `${arm.label}${arm.standIn ? " (stand-in)" : ""}: ${outcome(answer)}`));
    }
    head.append(marks);
    box.append(head);
    box.addEventListener("toggle", () => { if (box.open && box.children.length === 1) box.append(this.body(row)); });
    box.addEventListener("focusin", () => { this.at = [...this.list.children].indexOf(box); });
    return box;
  }

  body(row) {
    const body = make("div", "body");
    for (const [role, content] of this.data.earlier[row.e]) body.append(make("p", "label", role), make("pre", "text", content), make("br"));
    const label = make("p", "label", "Input ");
    label.append(make("span", "pill mono", row.i));
    for (const [name, value] of Object.entries(row.g)) label.append(" ", make("span", "pill", `${name}: ${value}`));
    body.append(label, make("pre", "text", row.q));
    const columns = make("div", "columns");
    const expected = make("div", "column");
    expected.append(make("h4", "", "Expected"), make("pre", "text", row.x));
    columns.append(expected);
    for (const answer of row.a) columns.append(this.answer(answer, row.x));
    body.append(columns, this.sharing(row), this.rating(row));
    return body;
  }

  // A link to the row and what it holds, for a message to someone else.
  sharing(row) {
    const box = make("p", "sharing");
    const link = make("a", "", "Link to this row");
    link.href = `#row=${encodeURIComponent(this.root.dataset.track)}:${encodeURIComponent(row.i)}`;
    const answers = () => Object.fromEntries(row.a.map((one) => [this.data.arms[one.m].spec, one.f || (one.tr ?? one.t)]));
    const record = () => JSON.stringify({ id: row.i, question: row.q, expected: row.xr ?? row.x, answers: answers(), tags: row.g }, null, 2);
    box.append(link, " ", copier("Copy link", () => link.href), " ", copier("Copy row", record));
    return box;
  }

  answer(answer, expected) {
    const arm = this.data.arms[answer.m];
    const column = make("div", `column ${answer.o}`);
    const head = make("h4", "", `${arm.label} `);
    if (arm.standIn) head.append(make("span", "tag", "stand-in"), " ");
    head.append(make("span", `mark ${answer.o}`, outcome(answer)));
    const text = make("pre", "text");
    const parts = answer.f || answer.o === "right" ? null : differences(expected, answer.t);
    if (!parts) fill(text, answer.f || answer.t);
    for (const [kind, words] of parts || []) {
      if (kind >= 0) text.append(make(kind ? "mark" : "span", "", words));
      else text.append(missing(words));
    }
    const facts = [`${this.data.primary} ${percent(answer.v)}`, seconds(answer.l)];
    if (answer.u) facts.push(`${answer.u[0]} + ${answer.u[1]} tokens`);
    for (const issue of answer.s || []) facts.push(issue.replaceAll("_", " "));
    column.append(head, text, make("p", "note", facts.join(" · ")));
    return column;
  }

  rating(row) {
    const box = make("div", "rating");
    const known = this.ratings.get(row.i) || { rating: "", comment: "", corrected: "" };
    const keep = (change) => {
      Object.assign(known, change);
      if (known.rating || known.comment || known.corrected) this.ratings.set(row.i, known);
      else this.ratings.delete(row.i);
      this.keep();
    };
    box.append(make("span", "label", "SLM’s answer: "));
    const buttons = ["good", "bad"].map((value) => {
      const button = make("button", "rate", value);
      button.type = "button";
      button.setAttribute("aria-pressed", String(known.rating === value));
      button.addEventListener("click", () => {
        keep({ rating: known.rating === value ? "" : value });
        for (const other of buttons) other.setAttribute("aria-pressed", String(other.textContent === known.rating));
      });
      return button;
    });
    const field = (name, caption) => {
      const label = make("label", "field", caption);
      const input = make("textarea", name);
      input.rows = 1;
      input.value = known[name];
      input.addEventListener("input", () => keep({ [name]: input.value }));
      label.append(input);
      return label;
    };
    box.append(...buttons, field("comment", "comment"), field("corrected", "right answer, if not the expected one"));
    return box;
  }

  exportRatings() {
    const lines = [];
    for (const row of this.data.rows) {
      const known = this.ratings.get(row.i);
      if (!known) continue;
      const slm = row.a.find((answer) => answer.m === this.data.slm);
      const said = slm && !slm.f ? (slm.tr ?? slm.t) : null;
      const expected = row.xr ?? row.x;
      const prompt = [...this.data.earlier[row.e].map(([role, content]) => ({ role, content })), { role: "user", content: row.q }];
      const tags = { ...row.g, ...(known.rating && { rating: known.rating }), ...(known.comment && { comment: known.comment }) };
      lines.push(JSON.stringify({ id: row.i, prompt, completion: known.corrected || (known.rating === "good" && said) || expected, tags }));
    }
    const link = make("a");
    link.href = URL.createObjectURL(new Blob(lines.map((line) => `${line}\n`), { type: "application/jsonl" }));
    link.download = `${this.root.dataset.track}-ratings.jsonl`;
    link.click();
    this.unkept = false;
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  }

  step(by) {
    const next = Math.max(0, Math.min(this.found.length - 1, this.at + by));
    while (this.drawn <= next && this.drawn < this.found.length) this.draw();
    const box = this.list.children[next];
    if (!box || box === this.end) return;
    this.at = next;
    box.querySelector("summary").focus();
    box.scrollIntoView({ block: "nearest" });
  }

  press(key) {
    const box = this.at >= 0 ? this.list.children[this.at] : null;
    if (key === "j") this.step(1);
    else if (key === "k") this.step(-1);
    else if (key === "o" && box) box.open = !box.open;
    else if (key === "/") this.search.focus();
    else if ((key === "g" || key === "b") && box) {
      box.open = true;
      if (box.children.length === 1) box.append(this.body(this.data.rows[this.found[this.at]]));
      box.querySelectorAll(".rate")[key === "g" ? 0 : 1].click();
    } else if (/^[1-8]$/.test(key)) {
      const input = this.root.querySelectorAll("input[type='radio']")[Number(key) - 1];
      if (!input) return false;
      this.choose(input.value);
    } else return false;
    return true;
  }
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || views.length === 0) return;
  const within = event.target;
  if (within.matches("textarea, select, input[type='search']")) {
    if (event.key === "Escape") within.blur();
    return;
  }
  const help = document.getElementById("keys");
  if (event.key === "?") {
    if (help.open) help.close();
    else help.showModal();
    event.preventDefault();
  } else if (!help.open && (active || views[0]).press(event.key)) {
    active = active || views[0];
    event.preventDefault();
  }
});
document.getElementById("close-keys").addEventListener("click", () => document.getElementById("keys").close());
window.addEventListener("beforeunload", (event) => { if (views.some((view) => view.unkept)) event.preventDefault(); });

// Many rows are packed: gzip in base64.
async function rowsIn(block) {
  if (block.dataset.packed !== "gzip") return JSON.parse(block.textContent);
  const bytes = Uint8Array.from(atob(block.textContent), (sign) => sign.charCodeAt(0));
  return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).json();
}

async function begin() {
  const roots = [...document.querySelectorAll(".sides")];
  const found = await Promise.all(roots.map((root) => rowsIn(root.querySelector("script[type='application/json']"))));
  roots.forEach((root, place) => views.push(new View(root, found[place])));
  follow();
}

// `#row=TRACK:ID` opens that row.
function follow() {
  const named = location.hash.match(/^#row=([^:]*):(.*)$/);
  if (!named) return;
  const [track, id] = named.slice(1).map(decodeURIComponent);
  const view = views.find((one) => one.root.dataset.track === track);
  if (view && !view.reveal(id)) view.said.textContent = `Row ${id} is not on this page; ${view.said.textContent}`;
}

window.addEventListener("hashchange", follow);

begin();
