// Runs before anything is drawn, so that a chosen theme does not flash in the other one first.
(() => {
  let chosen = null;
  try { chosen = localStorage.getItem("longtail-theme"); } catch { /* storage may be switched off */ }
  if (chosen === "dark" || chosen === "light") document.documentElement.dataset.theme = chosen;
})();
