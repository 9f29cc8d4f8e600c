// Replaces each static drawing by the live chart, and lets the table be sorted. Without it the page still says all.
for (const figure of document.querySelectorAll("[data-chart]")) {
  const spec = JSON.parse(document.getElementById(figure.dataset.chart).textContent);
  const still = figure.querySelector(".still");
  const live = document.createElement("div");
  figure.append(live);
  still.hidden = true;
  // ast: expressions are interpreted, never compiled, so the page's policy needs no eval.
  vegaEmbed(live, spec, {
    mode: "vega-lite", renderer: "svg", ast: true, actions: false, defaultStyle: false,
    tooltip: { disableDefaultStyle: true },
  }).then(
    () => { still.remove(); figure.dataset.drawn = "yes"; },
    (error) => { live.remove(); still.hidden = false; console.error(error); },
  );
}

for (const table of document.querySelectorAll("table[data-sortable]")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, index) => {
    const button = document.createElement("button");
    button.type = "button";
    button.title = `${head.title ? head.title + ". " : ""}Sort by this column.`;
    button.append(...head.childNodes);
    head.append(button);
    head.removeAttribute("title");
    button.addEventListener("click", () => {
      const up = head.getAttribute("aria-sort") !== "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const key = (row) => {
        const value = row.cells[index].dataset.value;
        return index === 0 ? row.cells[0].textContent.trim() : value === "" ? Infinity : Number(value);
      };
      const body = table.tBodies[0];
      const compare = (a, b) => (a < b ? -1 : a > b ? 1 : 0) * (up ? 1 : -1);
      body.append(...[...body.rows].sort((a, b) => compare(key(a), key(b))));
    });
  });
}
