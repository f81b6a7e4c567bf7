"""A local server: questions in the browser, and the APIs that clients of language models speak."""
