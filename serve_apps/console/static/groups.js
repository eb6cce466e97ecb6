// A click on a box of the treemap opens its group.
const map = document.getElementById("treemap");
const follow = () => map.on?.("plotly_treemapclick", (event) => {
  const point = event.points?.[0];
  if (point?.customdata) location.href = `groups?group=${encodeURIComponent(point.customdata[0])}`;
  return false; // no zoom: the page that opens shows what is below
});
new MutationObserver((_, observer) => {
  if (!map.classList.contains("drawn")) return;
  observer.disconnect();
  follow();
}).observe(map, { attributes: true, attributeFilter: ["class"] });
