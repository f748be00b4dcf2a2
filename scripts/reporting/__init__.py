"""What scripts/report.py makes of run folders: groups, tables, figures, a page."""
