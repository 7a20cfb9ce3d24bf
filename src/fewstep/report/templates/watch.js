"use strict";
// Asks for what has changed, and shows the previews of the step that the slider stands at.
const PAUSE = { alive: 3000, ended: 15000 };
const SHARE = 10; // pauses are so many times as long as an answer took: the run needs the processor
const slider = document.getElementById("slider");
const contact = document.getElementById("contact");
let steps = slider.dataset.steps.split(",").filter(Boolean).map(Number);
const shown = {};

function show() {
  const step = steps[Number(slider.value)];
  if (step === undefined) return;
  document.getElementById("at").textContent = `step ${step}`;
  for (const image of document.querySelectorAll("#pictures img")) {
    const address = `/preview/${step}/${image.dataset.row}/${image.dataset.column}`;
    image.onload = () => image.classList.toggle("tiny", image.naturalWidth < 160);
    if (image.getAttribute("src") !== address) image.src = address;
  }
}

function update(found) {
  for (const [id, html] of Object.entries(found.parts)) {
    const place = document.getElementById(id);
    // What somebody points at stays until the next time.
    if (shown[id] === html || (id === "curves" && place.matches(":hover"))) continue;
    place.innerHTML = shown[id] = html;
  }
  const followed = Number(slider.value) === steps.length - 1;
  const at = steps[Number(slider.value)];
  steps = found.steps;
  slider.max = Math.max(steps.length - 1, 0);
  const kept = steps.indexOf(at);
  slider.value = followed || kept < 0 ? slider.max : kept;
  document.getElementById("previews").hidden = steps.length === 0;
  show();
}

async function look() {
  let pause = PAUSE.ended;
  const began = performance.now();
  try {
    const answer = await fetch("/live");
    const found = await answer.json();
    update(found);
    contact.hidden = true;
    pause = Math.max(found.alive ? PAUSE.alive : PAUSE.ended, SHARE * (performance.now() - began));
  } catch {
    contact.hidden = false;
  }
  setTimeout(look, pause);
}

slider.addEventListener("input", show);
show();
look();
