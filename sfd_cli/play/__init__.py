"""A page in the browser: see pictures form, compare settings, keep a part of one and draw the rest anew."""
