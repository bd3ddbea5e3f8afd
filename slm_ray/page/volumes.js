
// What each way of answering costs at a volume that the reader chooses; the table above says it at fixed ones. A way is made
// of parts: a share of the requests, by the token (usd of one) or on whole machines (requests of one a day).
const DAYS_PER_MONTH = 365 / 12;

function daily(parts, machineUsd, requests) {
  let usd = 0;
  for (const part of parts) {
    if (part.usd === null && part.capacity === null) return null;
    usd += part.capacity === null ? part.usd * part.share * requests : machineUsd * Math.max(1, Math.ceil((part.share * requests) / part.capacity - 1e-9));
  }
  return usd;
}

function usd(value) {
  if (value === null) return "–";
  const cents = value >= 1 || value === 0;
  return value.toLocaleString("en-US", cents ? { minimumFractionDigits: 2, maximumFractionDigits: 2 } : { maximumSignificantDigits: 3 });
}

function atVolume(box) {
  const { machine_day_usd: machineUsd, ways, requests: mine } = JSON.parse(box.dataset.cost);
  const named = (tag, type, label) => {
    const control = make(tag);
    control.type = type;
    control.setAttribute("aria-label", label);
    return control;
  };
  const slider = named("input", "range", "requests a day, from 10 to 10 million");
  const exact = named("input", "number", "requests a day");
  const said = make("output");
  Object.assign(slider, { min: 1, max: 7, step: 0.05 });
  Object.assign(exact, { min: 1, max: 1e9, step: 1 });
  said.setAttribute("aria-live", "polite");
  const show = (requests) => {
    const priced = ways.map(([name, parts]) => ({ name, usd: daily(parts, machineUsd, requests) }));
    const known = priced.filter((way) => way.usd !== null).sort((one, other) => one.usd - other.usd);
    const figures = priced.map((way) => `${way.name} ${way.usd === null ? "–" : `${usd(way.usd * DAYS_PER_MONTH)} USD a month (${usd((1000 * way.usd) / requests)} per 1,000)`}`);
    said.textContent = `${figures.join("; ")}.${known.length > 1 ? ` Cheapest: ${known[0].name}.` : ""}`;
  };
  const choose = (requests) => {
    exact.value = requests;
    show(requests);
  };
  slider.addEventListener("input", () => choose(Number((10 ** Number(slider.value)).toPrecision(2))));
  exact.addEventListener("input", () => {
    if (!(exact.valueAsNumber >= 1)) return;
    slider.value = Math.log10(exact.valueAsNumber);
    show(exact.valueAsNumber);
  });
  slider.value = Math.log10(mine);
  choose(mine);
  const asked = make("label", "", "At ");
  asked.append(exact, " requests a day ");
  box.append(asked, slider, said);
  box.hidden = false;
}
for (const box of document.querySelectorAll(".at-volume")) atVolume(box);
