"""What is in a report of an evaluation: figures of its questions, and one HTML page of them.

reading.py      an evaluation's folder -> its answers, n-best lists and null odds
questions.py    these and the data -> questions with scores and outcomes
slices.py       questions -> groups of them, such as those with one question word
bootstrap.py    scores -> means with intervals, and the difference of two evaluations
thresholds.py   null odds -> scores at every no-answer threshold
reliability.py  confidences -> how often answers of each confidence are right
rows.py         questions -> the rows that the page holds
charts.py, tables.py, page.py    all of it -> one page, with page.css and page.js
"""
