"""The search for the best recipe: what may vary, how candidates are judged, and the state that survives a kill.

Optuna does the searching; candidates are merged by the same engine as any recipe. Optuna, torch and lm-eval are loaded
where they are used: everything else here works without them.
"""
