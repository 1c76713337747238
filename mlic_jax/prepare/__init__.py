"""What is made once for a set: own data to train on, with a recipe and a page that describes it."""
