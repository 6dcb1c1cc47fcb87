"""POPE: yes-or-no questions about objects in images."""
