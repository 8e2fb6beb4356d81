// m4j-bench: every op and whole models, without a JVM. Each result is checked against the reference before it is
// timed; each figure comes with its spread and its fraction of a ceiling measured in the same run.
#include <mamba4j.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <fstream>
#include <iostream>

#include "bench_models.h"
#include "bench_ops.h"
#include "ceilings.h"
#include "plan.h"
#include "random_model.h"
#include "report.h"

int main(int argc, char** argv) {
  using namespace m4j::bench;
  CLI::App app{
      "Measures mamba4j's native library: ops, prefill and decode, each beside the ceiling of this machine.\n"
      "Example: m4j-bench --models mamba-130m,mamba2-130m --dtypes f32,bf16 --json out.json --html out.html"};
  Plan plan;
  std::string json_path, html_path;
  bool check_only = false;
  app.add_option("--models", plan.models, "shapes to run, from --list")->delimiter(',')->capture_default_str();
  app.add_option("--dtypes", plan.dtypes, "weights: f32, f16, bf16, int8, int4")->delimiter(',')->capture_default_str();
  app.add_option("--prefill", plan.prefill_lengths, "prompt lengths")->delimiter(',')->capture_default_str();
  app.add_option("--decode", plan.decode_batches, "decode batch sizes")->delimiter(',')->capture_default_str();
  app.add_option("--context", plan.contexts, "context lengths for time per token")->delimiter(',')->capture_default_str();
  app.add_option("--threads", plan.threads, "thread counts; 0: the default of the engine")->delimiter(',')->capture_default_str();
  app.add_option("--simd", plan.simd_target, "instruction set instead of the best one");
  app.add_option("--repeat", plan.repeat, "samples a figure")->check(CLI::Range(1, 1000))->capture_default_str();
  app.add_flag("!--no-ops", plan.ops, "leave the single ops out");
  app.add_flag("--check-only", check_only, "only compare with the reference; nothing is timed");
  app.add_option("--json", json_path, "also write all figures to this file");
  app.add_option("--html", html_path, "also write a page with charts to this file");
  app.add_flag_callback(
      "--list",
      [] {
        for (const Shape& s : shapes()) std::printf("%s\n", s.name);
        throw CLI::Success();
      },
      "print the known shapes");
  CLI11_PARSE(app, argc, argv);

  try {
    plan.validate();
    Report report(plan);
    const bool correct = (!plan.ops || check_ops(plan)) & check_models(plan);
    if (!correct) return 1;
    if (check_only) return 0;
    for (int threads : plan.thread_counts()) {
      const Ceilings ceilings = measure_ceilings(threads, plan.repeat);
      report.start(threads, ceilings);
      if (plan.ops) time_ops(plan, threads, ceilings, report);
      time_models(plan, threads, ceilings, report);
    }
    if (!json_path.empty()) std::ofstream(json_path) << report.json();
    if (!html_path.empty()) std::ofstream(html_path) << report.html();
  } catch (const std::exception& e) {
    std::fprintf(stderr, "m4j-bench: %s\n", e.what());
    return 1;
  }
  return 0;
}
