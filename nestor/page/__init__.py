"""A web page to see a network spend less: what it looks at closely, what it answers, and what that costs."""
