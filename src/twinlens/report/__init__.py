"""A report is rows first (`rows`, `picture`); terminal, Markdown and JSON only print them."""
