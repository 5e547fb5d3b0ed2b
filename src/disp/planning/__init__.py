"""What a run will need and take, before anything heavy is loaded; see `disp.planning.plan.make_plan`."""
