
// Columns of the tables are sorted by a press on their heads; what is undefined stays at the end.
function measure(cell) {
  const text = cell.textContent.trim().replaceAll(",", "").replaceAll("−", "-");
  const time = text.match(/^(?:(\d+) min )?([\d.]+) (ms|s)$/);
  if (time) return (time[1] ? 60 * time[1] : 0) + time[2] / (time[3] === "ms" ? 1000 : 1);
  return text.startsWith("–") ? null : Number.parseFloat(text);
}

function sort(table, column, down) {
  const body = table.tBodies[0];
  const rows = [...body.rows].map((row) => ({ row, text: row.cells[column].textContent.trim(), value: measure(row.cells[column]) }));
  const words = rows.some((one) => Number.isNaN(one.value));
  const order = (one, other) => {
    if (words) return one.text.localeCompare(other.text);
    if (one.value === null || other.value === null) return (one.value === null) - (other.value === null);
    return one.value - other.value;
  };
  rows.sort((one, other) => (down && (words || (one.value !== null && other.value !== null)) ? order(other, one) : order(one, other)));
  body.append(...rows.map((one) => one.row));
}

for (const table of document.querySelectorAll("main table:not(.two-by-two)")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = make("button", "sort");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const down = column > 0 ? head.getAttribute("aria-sort") !== "descending" : head.getAttribute("aria-sort") === "ascending";
      for (const other of heads) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      sort(table, column, down);
    });
  });
}

// The contents say where the reader is.
const places = new Map([...document.querySelectorAll("nav a")].map((link) => [document.getElementById(link.hash.slice(1)), link]));
const watch = new IntersectionObserver((seen) => {
  for (const { target, isIntersecting } of seen) {
    if (!isIntersecting) continue;
    for (const link of places.values()) link.removeAttribute("aria-current");
    places.get(target).setAttribute("aria-current", "true");
  }
}, { rootMargin: "0px 0px -70% 0px" });
for (const target of places.keys()) if (target) watch.observe(target);

