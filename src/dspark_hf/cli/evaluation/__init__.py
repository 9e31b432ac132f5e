"""Commands about how good a drafter is: evaluate, diagnose, report, and the checks of exactness."""
