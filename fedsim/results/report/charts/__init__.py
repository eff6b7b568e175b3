"""Interactive charts of a page, in Vega-Lite by Altair."""
