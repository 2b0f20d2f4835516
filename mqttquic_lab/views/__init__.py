"""Pure functions from records to HTML, SVG, text and frames; nothing here waits, connects or keeps state."""
