"""What is made of a run's figures: tables, pictures, a page."""
