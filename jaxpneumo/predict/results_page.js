"use strict";
// Draws one page of rows at a time from the data; filter, search and keys choose which.
(() => {
  const SIZE = 50;
  const data = JSON.parse(document.getElementById("data").textContent);
  const find = (name) => document.querySelector(name);
  const rows = data.rows.map(([id, result, certainty, score, area, mm2, largest, largestMm2, side, why, emptiedBy, picture, name]) => ({
    id, score, area, mm2, largest, largestMm2, picture,
    result: data.results[result],
    certainty: data.texts[certainty],
    side: data.texts[side],
    why: data.texts[why],
    emptiedBy: data.texts[emptiedBy],
    file: name || id,
    sought: id.toLowerCase(),
  }));
  const fits = (row, kind) => kind === "all" || row.result === kind || (kind === "uncertain" && row.certainty === kind);
  let start = 0;

  const make = (tag, name, ...content) => {
    const element = document.createElement(tag);
    if (name) element.className = name;
    element.append(...content);
    return element;
  };
  const count = (value) => value.toLocaleString("en");

  const thumbnail = (row) => {
    if (row.picture === null) return make("span", "thumb", row.result === "set aside" ? "set aside" : "no picture");
    const link = make("a", "thumb");
    link.href = `${data.pictures[row.picture]}${encodeURIComponent(row.file)}.png`;
    const image = make("img");
    image.loading = "lazy";
    image.decoding = "async";
    image.alt = `Outlined radiograph ${row.id}: ${row.result}`;
    image.addEventListener("error", () => link.replaceChildren("picture is missing"));
    image.src = link.href;
    link.append(image);
    return link;
  };

  const areaOf = (pixels, mm2) => {
    const cell = make("td", "number");
    if (pixels === null) return cell;
    if (mm2 === null) cell.append(`${count(pixels)} px`);
    else cell.append(`${count(mm2)} mm²`, make("span", "unit", `${count(pixels)} px`));
    return cell;
  };

  const draw = (row) => {
    const result = make("td", "", make("span", row.result === "found" ? "result found" : "result", row.result));
    if (row.certainty) result.append(make("span", `badge ${row.certainty}`, row.certainty));
    result.append(make("span", "id", row.id));
    if (row.emptiedBy) result.append(make("span", "why", `the ${row.emptiedBy} left it empty, the network outlined something`));
    if (row.why) result.append(make("span", "why", row.why));
    const score = make("td", "number");
    if (row.score !== null) {
      const bar = make("i");
      bar.style.width = `${100 * row.score}%`;
      score.append(row.score.toFixed(3), make("span", "bar", bar));
    }
    const line = make("tr", "", make("td", "", thumbnail(row)), result, score);
    line.append(areaOf(row.area, row.mm2), areaOf(row.largest, row.largestMm2), make("td", "", row.side));
    line.dataset.id = row.id;
    return line;
  };

  const show = () => {
    const kind = find("input[name=show]:checked").value;
    const query = find(".query").value.trim().toLowerCase();
    const fitting = rows.filter((row) => fits(row, kind) && row.sought.includes(query));
    start = Math.max(0, Math.min(start, Math.floor((fitting.length - 1) / SIZE) * SIZE));
    const end = Math.min(start + SIZE, fitting.length);
    find("tbody").replaceChildren(...fitting.slice(start, end).map(draw));
    find("table").hidden = fitting.length === 0;
    find(".none").hidden = fitting.length > 0;
    find(".place").textContent = fitting.length ? `${count(start + 1)} to ${count(end)} of ${count(fitting.length)}` : "";
    find(".pages").hidden = fitting.length <= SIZE;
    find(".previous").disabled = start === 0;
    find(".next").disabled = end >= fitting.length;
  };

  const turn = (by) => {
    start += by * SIZE;
    show();
    find(".controls").scrollIntoView();
  };

  const first = () => {
    start = 0;
    show();
  };

  for (const label of document.querySelectorAll("fieldset label")) {
    const kind = label.querySelector("input").value;
    label.querySelector(".count").textContent = count(rows.filter((row) => fits(row, kind)).length);
    label.addEventListener("change", first);
  }
  find(".query").addEventListener("input", first);
  find(".controls").addEventListener("submit", (event) => event.preventDefault());
  find(".previous").addEventListener("click", () => turn(-1));
  find(".next").addEventListener("click", () => turn(1));

  const found = rows.filter((row) => row.result === "found").length;
  find(".title").textContent = `${count(data.total)} files`;
  if (data.total === rows.length) find(".title").textContent += `, pneumothorax outlined in ${count(found)}`;
  else {
    find(".lacking").hidden = false;
    find(".lacking").textContent = `This page has the ${count(rows.length)} highest scores of ${count(data.total)} files; results.csv has all.`;
  }
  find(".facts").textContent = data.facts;
  find(".synthetic").hidden = !data.synthetic;
  const bands = data.bands;
  find(".rule").textContent = !bands
    ? "These predictions are of an earlier version and have no scores."
    : `A pneumothorax is likely from a score of ${bands.high.toFixed(3)} and unlikely up to ${bands.low.toFixed(3)}: limits ` +
      (bands.calibrated ? "calibrated by the evaluation of this model." : "not calibrated, halfway to 1 and to 0 from the threshold (the top one or the classifier's, if there is one).");
  show();
})();
