docker run --rm -p 8000:8000
