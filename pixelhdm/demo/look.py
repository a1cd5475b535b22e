"""How the demo's page looks: nothing of it comes from elsewhere."""

import gradio as gr

FONT, MONO = ("system-ui", "sans-serif"), ("ui-monospace", "monospace")
THEME = gr.themes.Default(
    primary_hue="indigo",
    neutral_hue="slate",
    font=[gr.themes.Font(name) for name in FONT],
    font_mono=[gr.themes.Font(name) for name in MONO],
)
CSS = """
.gradio-container { max-width: 1240px !important; margin: 0 auto !important; }
#layout { display: grid; grid-template: "ask results" auto "settings results" 1fr
  / minmax(0, 5fr) minmax(0, 6fr); gap: 12px 20px; }
#ask { grid-area: ask; } #results { grid-area: results; } #settings { grid-area: settings; }
@media (max-width: 760px) {
  #layout { grid-template: "ask" "results" "settings" / minmax(0, 1fr); } }
#head h1 { margin: 0; font-size: 1.4rem; }
#head p { margin: 0; color: var(--body-text-color-subdued); font-size: .9rem; }
#head .html-container, #results .html-container, #hint .html-container { padding: 0; }
.pictures { display: flex; flex-wrap: wrap; gap: 6px; justify-content: center;
  align-items: center; min-height: 260px; max-height: 80vh; overflow-y: auto;
  padding: 10px; border-radius: var(--block-radius);
  background: var(--background-fill-secondary); border: 1px solid var(--border-color-primary);
  color: var(--body-text-color-subdued); }
.pictures img { max-width: 100%; height: auto; }
.sharp, #history.sharp img { image-rendering: pixelated; }
.state { display: flex; gap: 10px; align-items: center; min-height: 1.6em;
  overflow-wrap: anywhere; }
.state progress { flex: 1; max-width: 260px; accent-color: var(--primary-500); }
.state.mistake { color: var(--error-text-color); background: var(--error-background-fill);
  border: 1px solid var(--error-border-color); border-radius: 8px; padding: 6px 10px; }
.facts, .facts tr, .facts th, .facts td { border: none !important; background: none; }
.facts { width: 100%; font-size: .85rem; border-collapse: collapse; }
.facts th { text-align: left; font-weight: 600; padding: 2px 12px 2px 0; vertical-align: top;
  white-space: nowrap; color: var(--body-text-color-subdued); }
.facts td { padding: 2px 0; overflow-wrap: anywhere; width: 100%; }
#history img { object-fit: contain; }
#history .grid-wrap { min-height: 0; max-height: 45vh; height: auto; }
#history .grid-container { grid-template-columns: repeat(auto-fill, minmax(76px, 1fr)); }
#hint { font-size: .85rem; color: var(--body-text-color-subdued); }
footer { display: none !important; }
"""
