def model_card(plan, title): return "# "+title+"\n"
