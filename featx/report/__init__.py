"""What a person looks at: plots and image grids; import from the modules."""
