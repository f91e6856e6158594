from dataclasses import replace

from cases import roberta

CASE = replace(roberta.CASE, later=True)
