// Shows what Python has drawn; all it decides itself is which frame is on.
const LENGTH = 2600; // of the way from noise, milliseconds
const find = (selector) => element.querySelector(selector);
const sideOf = (number) => find(`.side[data-side="${number}"]`);
const sides = () => (props.value && props.value.sides) || [];
let playing = null;

function show(part) {
  sides().forEach((shown, number) => {
    const place = sideOf(number);
    let frame = 0;
    shown.parts.forEach((at, index) => {
      if (Math.abs(at - part) <= Math.abs(shown.parts[frame] - part)) frame = index;
    });
    place.dataset.frame = frame;
    place.querySelector(".picture").src = shown.frames[frame];
    if (shown.maps.length) place.querySelector(".map").src = shown.maps[frame];
    place.querySelector(".reading").textContent = shown.readings[frame];
    const now = place.querySelector(".now");
    const x = shown.parts[frame] * 300;
    now.setAttribute("x1", x);
    now.setAttribute("x2", x);
  });
}

function stop() {
  cancelAnimationFrame(playing);
  playing = null;
  find(".play").textContent = "▶";
}

function play() {
  stop();
  const start = performance.now();
  find(".play").textContent = "❚❚";
  const tick = (now) => {
    const part = Math.min((now - start) / LENGTH, 1);
    find(".scrub").value = part;
    show(part);
    if (part < 1) playing = requestAnimationFrame(tick);
    else stop();
  };
  playing = requestAnimationFrame(tick);
}

function outline(cells) {
  const grid = sides().length ? sides()[0].grid : 1;
  element.querySelectorAll(".cells").forEach((box) => {
    box.style.display = cells ? "block" : "none";
    if (!cells) return;
    const [top, bottom, left, right] = cells;
    const percent = (number) => `${(100 * number) / grid}%`;
    Object.assign(box.style, {
      top: percent(top), height: percent(bottom + 1 - top), left: percent(left), width: percent(right + 1 - left),
    });
  });
}

function render() {
  sides().forEach((shown, number) => {
    const place = sideOf(number);
    for (const name of ["name", "title", "told"]) place.querySelector(`.${name}`).textContent = shown[name];
    const save = place.querySelector(".save");
    save.href = shown.frames[shown.frames.length - 1];
    save.download = shown.file;
    place.querySelector(".streams").classList.toggle("alone", !shown.maps.length);
    place.querySelector(".picture").classList.toggle("coarse", shown.side <= 96);
    place.querySelector(".picture").alt = `${shown.name}: ${shown.title}`;
    place.querySelector(".map").alt = `semantics of ${shown.name}`;
    place.querySelector(".schedule").innerHTML = shown.schedule;
  });
  element.dataset.drawn = (props.value && props.value.drawn) || "";
  outline(props.value && props.value.cells);
  if (!sides().length) return;
  if (matchMedia("(prefers-reduced-motion: reduce)").matches) {
    find(".scrub").value = 1;
    show(1);
  } else play();
}

// The template may be rendered again, so listeners stay on the element that holds it.
element.addEventListener("input", (event) => {
  if (!event.target.matches(".scrub")) return;
  stop();
  show(Number(event.target.value));
});
element.addEventListener("click", (event) => {
  if (event.target.matches(".play")) playing === null ? play() : stop();
});

// A rectangle of cells, dragged on either picture of the first side.
let from = null;
const cellAt = (event, frame) => {
  const box = frame.getBoundingClientRect();
  const grid = sides()[0].grid;
  const cell = (value) => Math.max(0, Math.min(grid - 1, Math.floor(value * grid)));
  return [cell((event.clientY - box.top) / box.height), cell((event.clientX - box.left) / box.width)];
};
const between = ([row, column], [otherRow, otherColumn]) => [
  Math.min(row, otherRow), Math.max(row, otherRow), Math.min(column, otherColumn), Math.max(column, otherColumn),
];
element.addEventListener("pointerdown", (event) => {
  const frame = event.target.closest('.side[data-side="0"] .frame');
  if (!frame || !sides().length) return;
  event.preventDefault();
  from = { frame, cell: cellAt(event, frame) };
  outline(between(from.cell, from.cell));
});
element.addEventListener("pointermove", (event) => {
  if (from) outline(between(from.cell, cellAt(event, from.frame)));
});
window.addEventListener("pointerup", (event) => {
  if (!from) return;
  const cells = between(from.cell, cellAt(event, from.frame));
  from = null;
  outline(cells);
  trigger("select", { cells });
});

watch("value", render);
render();
