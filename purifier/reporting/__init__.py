"""A finished audit for people and machines: HTML, Markdown, CSV, JUnit, SARIF, an evidence sheet, and differences."""
