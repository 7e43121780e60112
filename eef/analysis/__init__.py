"""Statistics, tables, figures, the report and views."""
