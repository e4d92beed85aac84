// The libraries, in one place: components are plain functions, templates are `html`.
import { h, render } from "./vendor/preact.js";
import htm from "./vendor/htm.js";
export { useEffect, useRef, useState } from "./vendor/hooks.js";
export { computed, effect, signal } from "./vendor/signals.js";
export { render };
export const html = htm.bind(h);
