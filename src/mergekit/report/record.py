def merge_report(plan, outcomes, seconds): return {"seconds": seconds}
