"""What is made once for a set: own data with a recipe and a page, word vectors, a label graph."""
