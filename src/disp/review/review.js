// Keys press the buttons, and a decision that did not arrive is said.
"use strict";

const form = document.getElementById("decision");
const notice = document.getElementById("notice");
let busy = false;

function say(text) {
  notice.textContent = text;
  notice.hidden = false;
}

async function decide(word) {
  if (busy) return;
  busy = true;
  const fields = new URLSearchParams({
    decision: word,
    token: form.elements.token.value,
    row: form.elements.row.value,
  });
  try {
    const answer = await fetch(form.action, { method: "POST", body: fields, headers: { accept: "application/json" } });
    if (answer.ok) {
      location.assign((await answer.json()).next);
      return; // busy until the next page is there
    }
    if (answer.status === 403 || answer.status === 409) {
      location.reload(); // the server was started again: its page is as good, and nothing was decided
      return;
    }
    say("Not saved. " + (await answer.text()));
  } catch {
    say("Not saved: disp review does not answer. Start it again with the same command, then press the key once more.");
  }
  busy = false;
}

if (form) {
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    decide(event.submitter.value);
  });
}

document.addEventListener("keydown", (event) => {
  // A key that is held down decides one row, not all.
  if (event.repeat || event.ctrlKey || event.altKey || event.metaKey) return;
  const word = { y: "yes", n: "no", s: "skip" }[event.key.toLowerCase()];
  const link = { ArrowLeft: "back", ArrowRight: "next" }[event.key];
  if (word && form) {
    event.preventDefault();
    decide(word);
  } else if (link && document.getElementById(link)) {
    event.preventDefault();
    document.getElementById(link).click();
  }
});

// A page that "back" brings from the browser's memory may show a decision of before.
window.addEventListener("pageshow", (event) => {
  if (event.persisted) location.reload();
});
