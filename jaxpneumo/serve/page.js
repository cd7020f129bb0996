// The page: sends files, keeps the answers, shows them. `mask.js` makes the regions, `drawing.js` small pictures.
"use strict";

(() => {
  const find = (selector, within = document) => within.querySelector(selector);
  const run = JSON.parse(find("#run").textContent);
  const AT_ONCE = 6; // uploads on the way: as many as a browser opens to one server
  const WHOLE = { width: 255, level: 127.5 }; // the window that leaves a picture as it is

  const entries = []; // answered, the highest score first
  const waiting = [];
  const refused = [];
  let [total, answered, underWay, unreachable] = [0, 0, 0, false];
  let chosen = null;
  let shown = null; // what is on the screen: {entry, levels, reached, url}; soon the chosen one
  let threshold = run.own;
  let greys = { ...WHOLE };
  let clock = 0;
  let touched = false; // whether the user has chosen a radiograph

  // --- files in -------------------------------------------------------------------------------------------------

  const take = (files) => {
    for (const { file, name } of files) waiting.push({ file, name });
    total += files.length;
    send();
  };

  const named = (list) => [...list].map((file) => ({ file, name: file.webkitRelativePath || file.name }));

  // The files of a dropped folder, at any depth.
  const walk = async (item, found) => {
    if (item.isFile) {
      const file = await new Promise((done, fail) => item.file(done, fail));
      found.push({ file, name: item.fullPath.replace(/^\//, "") });
    } else if (item.isDirectory) {
      const reader = item.createReader();
      for (;;) {
        const some = await new Promise((done, fail) => reader.readEntries(done, fail));
        if (!some.length) break;
        for (const one of some) await walk(one, found);
      }
    }
    return found;
  };

  const GONE = { words: "No answer from the server. Is the command still running?" };

  const post = (entry, where, headers = {}) =>
    fetch(where, {
      method: "POST",
      body: entry.file,
      headers: { "Content-Type": "application/octet-stream", "X-File-Name": encodeURIComponent(entry.name), ...headers },
    }).catch(() => { throw GONE; });

  // What the server says about a file; throws {words} where it refuses, and GONE where nobody answers.
  const ask = async (entry, where, headers) => {
    if (entry.file.size > run.mostBytes)
      throw { words: `It has ${Math.ceil(entry.file.size / 2 ** 20)} MiB; this page takes ${run.mostBytes / 2 ** 20} MiB at most. \`jaxpneumo predict\` takes larger files.` };
    try {
      await entry.file.slice(0, 1).arrayBuffer();
    } catch {
      throw { words: "The browser cannot read it any more: it was moved, changed or removed." };
    }
    const response = await post(entry, where, headers);
    if (!response.ok) throw { words: (await response.json().catch(() => ({}))).error || `The server answered with ${response.status}.` };
    return response;
  };

  const bytes = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));

  const receive = async (entry) => {
    const { image, levels, ...found } = await (await ask(entry, "/radiographs")).json();
    Object.assign(entry, found, { image: bytes(image), levels: bytes(levels), used: (clock += 1) });
  };

  // Forgets the pictures that were not looked at for longest, but for the latest.
  const trim = () => {
    let kept = 0;
    for (const one of [...entries].sort((a, b) => b.used - a.used)) {
      if (kept && one.image && kept + one.image.length > run.mostKept) one.image = one.levels = null;
      kept += one.image ? one.image.length : 0;
    }
  };

  const unpack = async (entry) => {
    const stream = new Blob([entry.levels]).stream().pipeThrough(new DecompressionStream("deflate"));
    return new Uint8Array(await new Response(stream).arrayBuffer());
  };

  const reason = (error) => error.words || `The page failed: ${error.message}`;

  const send = () => {
    while (underWay < AT_ONCE && waiting.length && !unreachable) {
      const entry = waiting.shift();
      underWay += 1;
      receive(entry)
        .then(() => arrive(entry))
        .catch((error) => {
          if (error === GONE) {
            waiting.unshift(entry);
            unreachable = true;
          } else {
            refuse(entry, reason(error));
          }
        })
        .finally(() => {
          underWay -= 1;
          tell();
          send();
        });
    }
    tell();
  };

  const tell = () => {
    const left = total - answered;
    find("#progress").textContent = unreachable
      ? `No answer from the server, ${left} not read. Is the command still running?`
      : left ? `${answered} of ${total} read${answered ? "" : "; the first takes longest"}` : total ? `${total} read` : "";
    find("#again").hidden = !unreachable;
    find("#count").textContent = entries.length ? `(${entries.length})` : "";
    find("#clear").hidden = !total;
  };

  const refuse = (entry, words) => {
    answered += 1;
    refused.push(entry);
    const item = document.createElement("li");
    const name = document.createElement("b");
    name.textContent = entry.name;
    item.append(name, `: ${words}`);
    find("#refused ul").append(item);
    find("#refused").hidden = false;
    find("#refused").open = refused.length < 4;
    find("#refused summary").textContent = `${refused.length} ${refused.length === 1 ? "file" : "files"} not used`;
  };

  // --- the list -------------------------------------------------------------------------------------------------

  const words = (entry, area) => (area ? `${area.toLocaleString("en")} px` : "nothing outlined");

  const bare = (name) => name.slice(name.lastIndexOf("/") + 1);

  const short = (name) => (name.length < 24 ? name : `${name.slice(0, 8)}…${name.slice(-13)}`);

  const arrive = async (entry) => {
    const { image } = entry; // later it may be dropped
    const levels = await unpack(entry);
    const { mask } = region(levels, entry.width, entry.height, run.own, rules(entry), countReached(levels));
    const item = document.createElement("li");
    const button = document.createElement("button");
    button.type = "button";
    const picture = document.createElement("img");
    picture.alt = "";
    picture.src = await thumbnail(image, entry.width, entry.height, mask);
    const text = document.createElement("span");
    text.className = "text";
    for (const [kind, content] of [["score", ""], [entry.area ? "found" : "", words(entry, entry.area)], ["name", short(bare(entry.name))]]) {
      const line = document.createElement("span");
      line.className = kind;
      if (kind === "score") line.append(Object.assign(document.createElement("b"), { textContent: entry.score.toFixed(3) }), ` ${entry.band}`);
      else line.textContent = content;
      text.append(line);
    }
    button.title = entry.name;
    button.append(picture, text);
    button.addEventListener("click", () => pick(entry));
    item.append(button);
    entry.button = button;
    const place = entries.findIndex((one) => one.score < entry.score);
    if (place < 0) {
      entries.push(entry);
      find("#list").append(item);
    } else {
      find("#list").insertBefore(item, entries[place].button.parentNode);
      entries.splice(place, 0, entry);
    }
    trim();
    answered += 1;
    // Until somebody chooses, the first one is shown, and in the end the one with the highest score.
    if (!chosen || (!touched && answered === total)) choose(entries[0]);
    else where();
    tell();
  };

  // --- one radiograph -------------------------------------------------------------------------------------------

  const rules = (entry) => ({ ...run.rules, emptied: Boolean(entry.emptied) });

  const choose = async (entry) => {
    chosen = entry;
    for (const one of entries) one.button.removeAttribute("aria-current");
    entry.button.setAttribute("aria-current", "true");
    entry.button.scrollIntoView({ block: "nearest" });
    if (document.activeElement && document.activeElement.closest("#list")) entry.button.focus();
    where();
    try {
      if (!entry.image) await receive(entry);
    } catch (error) {
      find("#finding").textContent = reason(error);
      return;
    }
    const { image } = entry;
    const levels = await unpack(entry);
    if (chosen !== entry) return; // another was chosen in the meantime
    if (shown) URL.revokeObjectURL(shown.url);
    entry.used = clock += 1;
    trim();
    shown = { entry, levels, reached: countReached(levels), url: URL.createObjectURL(new Blob([image], { type: "image/png" })) };
    greys = { ...WHOLE };
    for (const picture of document.querySelectorAll(".frame img")) picture.src = shown.url;
    find("#plain img").alt = `Radiograph ${entry.name}`;
    for (const frame of document.querySelectorAll(".frame")) frame.style.setProperty("--ratio", entry.width / entry.height);
    find("#marked svg").setAttribute("viewBox", `0 0 ${entry.width} ${entry.height}`);
    find("#welcome").hidden = true;
    find("#shown").hidden = find("#facts").hidden = false;
    facts(entry);
    window_();
    heat();
    draw();
  };

  const facts = (entry) => {
    find("#name").textContent = `${bare(entry.name)}, ${entry.width} x ${entry.height} pixels`;
    find("#score").textContent = entry.score.toFixed(3);
    find("#emptied").textContent = entry.emptied;
    find("#download-note").textContent = "";
    find("#remarks").replaceChildren(...[`File: ${entry.name}`, `Id: ${entry.id}`, ...entry.remarks].map((text) => Object.assign(document.createElement("li"), { textContent: text })));
  };

  const where = () => {
    const place = entries.indexOf(chosen);
    find("#place").textContent = `${place + 1} of ${entries.length}`;
    find("#previous").disabled = place <= 0;
    find("#next").disabled = place >= entries.length - 1;
  };

  const pick = (entry) => {
    touched = true;
    return choose(entry);
  };

  const step = (place) => entries.length && pick(entries[Math.min(Math.max(place, 0), entries.length - 1)]);

  // The region, its outline and its area at the slider's threshold.
  const draw = () => {
    const { entry, levels, reached } = shown;
    const { width, height } = entry;
    const { mask, area } = region(levels, width, height, threshold, rules(entry), reached);
    const exact = threshold === run.own ? entry.area : area;
    find("#marked path").setAttribute("d", mask ? outline(mask, width, height) : "");
    find("#marked img").alt = `Radiograph ${entry.name}, ${exact ? `${exact} pixels outlined` : "nothing outlined"}`;
    find("#finding").textContent = exact ? "Pneumothorax outlined" : "No pneumothorax outlined";
    find("#finding").classList.toggle("found", exact > 0);
    find("#area").textContent = `${exact.toLocaleString("en")} px`;
    find("#area").dataset.computed = area;
    const spacing = entry.pixel_spacing;
    find("#area-mm2").textContent = spacing ? `${(exact * spacing[0] * spacing[1]).toLocaleString("en", { maximumFractionDigits: 1 })} mm²` : "mm² unknown: no pixel spacing";
    const [own, value] = [run.thresholds[run.own - 1], run.thresholds[threshold - 1]];
    const only = threshold === run.own ? "" : ` (at ${number(own)})`; // what the browser does not work out anew
    find("#certainty").textContent = (entry.why ? `${entry.band}: ${entry.why}` : `pneumothorax ${entry.band}`) + only;
    find("#side").textContent = (entry.side ? `the patient's ${entry.side}` : entry.area ? "both, or not known" : "-") + only;
    find("#threshold").value = threshold;
    find("#threshold-value").textContent = number(value);
    find("#own").disabled = threshold === run.own;
    find(".bar i").style.left = `calc(${100 * value}% - 1px)`;
  };

  const number = (value) => value.toFixed(3).replace(/0$/, "");

  const heat = () => {
    const on = pressed("#show-heat");
    const canvas = find("#marked canvas");
    canvas.hidden = find("#legend").hidden = !on;
    if (!on || !shown) return;
    drawHeat(canvas, shown.levels, shown.entry.width, shown.entry.height, run.thresholds);
  };

  // Grey levels: the window's width and level become a slope and an intercept of the picture's values.
  const window_ = () => {
    greys.width = Math.min(Math.max(greys.width, 1), 510);
    greys.level = Math.min(Math.max(greys.level, 0), 255);
    const slope = 255 / greys.width;
    for (const part of document.querySelectorAll("#grey feComponentTransfer > *")) {
      part.setAttribute("slope", slope);
      part.setAttribute("intercept", 0.5 - (greys.level / 255) * slope);
    }
    for (const name of ["width", "level"]) {
      find(`#${name}`).value = greys[name];
      find(`#${name}-value`).textContent = Math.round(greys[name]);
    }
  };

  const pressed = (name) => find(name).getAttribute("aria-pressed") === "true";

  const toggle = (name) => {
    find(name).setAttribute("aria-pressed", String(!pressed(name)));
    find("#marked path").style.display = pressed("#show-outline") ? "" : "none";
    find("#stage").classList.toggle("both", pressed("#show-both"));
    heat();
  };

  const setThreshold = (level) => {
    threshold = Math.min(Math.max(level, 1), run.thresholds.length);
    if (shown) draw();
  };

  const reset = () => {
    greys = { ...WHOLE };
    window_();
    setThreshold(run.own);
  };

  const download = async (kind) => {
    const [note, { entry }] = [find("#download-note"), shown];
    note.textContent = `Making ${kind.words} ...`;
    try {
      const response = await ask(entry, `/radiographs/${kind.name}`, { "X-Threshold": String(run.thresholds[threshold - 1]) });
      const url = URL.createObjectURL(await response.blob());
      const link = Object.assign(document.createElement("a"), { href: url, download: `${entry.id}-${kind.name}` });
      link.click();
      URL.revokeObjectURL(url);
      note.textContent = `${kind.words}: saved as ${link.download}, at threshold ${number(run.thresholds[threshold - 1])}.`;
    } catch (error) {
      note.textContent = reason(error);
    }
  };

  // --- what the user does ---------------------------------------------------------------------------------------

  for (const name of ["#choose-files", "#choose-folder"])
    find(name).addEventListener("change", (event) => {
      take(named(event.target.files));
      event.target.value = "";
    });
  find("#again").addEventListener("click", () => {
    unreachable = false;
    send();
  });
  find("#clear").addEventListener("click", () => location.reload());

  const over = (shows) => (event) => {
    event.preventDefault();
    find("#drop-here").hidden = !shows;
  };
  document.addEventListener("dragover", over(true));
  document.addEventListener("dragleave", (event) => event.relatedTarget || over(false)(event));
  document.addEventListener("drop", async (event) => {
    over(false)(event);
    const items = [...event.dataTransfer.items].map((item) => item.webkitGetAsEntry && item.webkitGetAsEntry()).filter(Boolean);
    if (!items.length) return take(named(event.dataTransfer.files));
    const found = [];
    for (const item of items) await walk(item, found);
    take(found);
  });

  find("#threshold").addEventListener("input", (event) => setThreshold(Number(event.target.value)));
  find("#own").addEventListener("click", () => setThreshold(run.own));
  for (const name of ["width", "level"])
    find(`#${name}`).addEventListener("input", (event) => {
      greys[name] = Number(event.target.value);
      window_();
    });
  const stage = find("#stage");
  stage.addEventListener("pointerdown", (event) => stage.setPointerCapture(event.pointerId));
  stage.addEventListener("pointermove", (event) => {
    if (!stage.hasPointerCapture(event.pointerId)) return;
    greys.width += event.movementX;
    greys.level += event.movementY;
    window_();
  });
  stage.addEventListener("dblclick", reset);

  const keys = {
    o: () => toggle("#show-outline"),
    h: () => toggle("#show-heat"),
    s: () => toggle("#show-both"),
    r: reset,
    "[": () => setThreshold(threshold - 1),
    "]": () => setThreshold(threshold + 1),
    "?": () => find("#help").showModal(),
    ArrowLeft: () => step(entries.indexOf(chosen) - 1),
    ArrowUp: () => step(entries.indexOf(chosen) - 1),
    ArrowRight: () => step(entries.indexOf(chosen) + 1),
    ArrowDown: () => step(entries.indexOf(chosen) + 1),
    Home: () => step(0),
    End: () => step(entries.length - 1),
  };
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || find("#help").open) return;
    const action = keys[event.key.length === 1 ? event.key.toLowerCase() : event.key];
    const moves = event.key.length > 1; // which is the sliders' own where one has the focus
    if (!action || (moves && (!entries.length || event.target.matches("input[type=range]")))) return;
    event.preventDefault();
    action();
  });
  for (const [name, key] of [["#show-outline", "o"], ["#show-heat", "h"], ["#show-both", "s"], ["#reset", "r"], ["#previous", "ArrowLeft"], ["#next", "ArrowRight"], ["#keys", "?"]])
    find(name).addEventListener("click", keys[key]);

  // --- what is known before the first file ----------------------------------------------------------------------

  find("#run-name").textContent = run.name;
  find("#thresholds").textContent = run.words;
  find("#synthetic").hidden = !run.synthetic;
  find("#calibrated").hidden = run.calibrated;
  find("#address").textContent = location.host;
  find("#threshold").min = 1;
  find("#threshold").max = run.thresholds.length;
  find("#ticks option").value = run.own;
  find("#own").textContent = `The run's own: ${number(run.thresholds[run.own - 1])}`;
  find(".bar").style.background = `linear-gradient(to right, ${COLOURS.map((one) => `rgb(${one.join(" ")})`).join(", ")})`;
  for (const kind of run.downloads) {
    const button = Object.assign(document.createElement("button"), { type: "button", textContent: kind.words });
    button.addEventListener("click", () => download(kind));
    find("#downloads").append(button);
  }
})();
