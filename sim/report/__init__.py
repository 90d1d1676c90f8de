"""What is made of results: JSON, tables, plots and one page of HTML. Part of the extra `sim`."""
