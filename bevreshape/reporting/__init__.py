"""Draw figures, tables, progress, and the report page."""
