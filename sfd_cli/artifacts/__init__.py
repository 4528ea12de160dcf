"""What stages leave behind: recipes, the folders they fill, fingerprints, the sample folder."""
