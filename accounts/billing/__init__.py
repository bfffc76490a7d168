"""Usage, prices and allowances in the API and the console."""
