// Words of the Sweeps page: numbers, times, states.

export const score = (value) => (value == null ? "–" : value.toFixed(4));

export function signed(value) {
  return value == null ? "" : `${value < 0 ? "−" : "+"}${Math.abs(value).toFixed(4)}`;
}

export function duration(seconds) {
  if (seconds == null) return "–";
  if (seconds < 90) return `${Math.round(seconds)} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  return `${(seconds / 3600).toFixed(1)} h`;
}

export function ago(at) {
  const past = Date.now() / 1000 - at;
  return past < 5 ? "now" : past < 86400 ? `${duration(past)} ago` : new Date(at * 1000).toISOString().slice(0, 16).replace("T", " ");
}

export const WORDS = {
  running: "running", pending: "waiting", interrupted: "interrupted", finished: "finished", succeeded: "succeeded", failed: "failed", stopped: "stopped", refused: "refused",
};
