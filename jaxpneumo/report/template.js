"use strict";
// The gallery: a large view of the chosen card, filters, order, opacities and keys. Without it the cards stay readable.
(() => {
  const gallery = document.querySelector(".gallery");
  const viewer = gallery.querySelector(".viewer");
  const list = gallery.querySelector(".cases");
  const cases = [...list.children];
  const find = (name) => gallery.querySelector(name);
  let visible = cases;
  let chosen = null;

  const choose = (item, focus) => {
    if (!item) return;
    for (const one of cases) {
      const button = one.firstElementChild;
      button.setAttribute("aria-pressed", String(one === item));
      button.tabIndex = one === item ? 0 : -1;
    }
    chosen = item;
    const card = item.firstElementChild;
    const picture = card.querySelector(".picture").cloneNode(true);
    const { width, height } = picture.querySelector("svg").viewBox.baseVal;
    // As large as the column and the window's height allow, in the radiograph's own proportions.
    const share = window.matchMedia("(max-width: 980px)").matches ? 58 : 62;
    picture.style.width = `min(100%, ${((share * width) / height).toFixed(2)}vh)`;
    viewer.dataset.imageId = item.dataset.imageId;
    find(".stage").replaceChildren(picture);
    const name = document.createElement("span");
    name.className = "id";
    name.textContent = item.dataset.imageId;
    const dice = card.querySelector(".caption b").textContent;
    find(".facts").replaceChildren(`Dice ${dice} · ${card.dataset.facts}`, name);
    find(".place").textContent = `${visible.indexOf(item) + 1} of ${visible.length}`;
    if (focus) card.focus({ preventScroll: true });
    const top = item.offsetTop - list.offsetTop;
    if (top < list.scrollTop) list.scrollTop = top - 6;
    else if (top + item.offsetHeight > list.scrollTop + list.clientHeight)
      list.scrollTop = top + item.offsetHeight - list.clientHeight + 6;
  };

  const step = (by, focus) => {
    const place = Math.max(0, visible.indexOf(chosen)) + by;
    choose(visible[Math.min(Math.max(place, 0), visible.length - 1)], focus);
  };

  const show = () => {
    const kind = find("input[name=filter]:checked").value;
    const ordered = find(".order").value === "best" ? cases : [...cases].reverse();
    list.replaceChildren(...ordered);
    for (const one of cases) one.hidden = !one.dataset.kinds.split(" ").includes(kind);
    visible = ordered.filter((one) => !one.hidden);
    find(".none").hidden = visible.length > 0;
    viewer.hidden = visible.length === 0;
    choose(visible.includes(chosen) ? chosen : visible[0], false);
  };

  const columns = () => Math.max(1, visible.filter((one) => one.offsetTop === visible[0].offsetTop).length);

  const slider = (name, property) => {
    const input = find(name);
    const apply = () => gallery.style.setProperty(property, String(input.value / 100));
    input.addEventListener("input", apply);
    apply();
  };
  slider(".outline-opacity", "--outline");
  slider(".fill-opacity", "--fill");
  slider(".brightness", "--brightness");
  for (const name of ["truth", "prediction"]) {
    const box = find(`.show-${name}`);
    const apply = () => gallery.classList.toggle(`hide-${name}`, !box.checked);
    box.addEventListener("change", apply);
    apply();
  }

  for (const one of cases) one.firstElementChild.addEventListener("click", () => choose(one, true));
  find(".previous").addEventListener("click", () => step(-1, false));
  find(".next").addEventListener("click", () => step(1, false));
  for (const input of gallery.querySelectorAll("input[name=filter], .order")) input.addEventListener("change", show);

  gallery.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches("input[type=range], input[type=radio], select")) return;
    const moves = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns(), ArrowDown: columns(), Home: -cases.length, End: cases.length };
    if (event.key in moves && visible.length) {
      event.preventDefault();
      step(moves[event.key], event.target.matches(".card"));
    } else if (event.key.toLowerCase() === "h") {
      gallery.classList.toggle("hide-all");
    }
  });

  find(".filters").hidden = false;
  // First one with something to see: correctly empty ones have the best Dice.
  chosen = cases.find((one) => one.querySelector("path:not([d=''])")) || null;
  show();
})();
