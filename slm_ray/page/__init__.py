"""The verdict for people: one offline HTML page with its charts and rows, and figures as text. Pure; owns jinja2."""
