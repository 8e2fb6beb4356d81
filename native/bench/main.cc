// m4j-bench: every op and whole models, without a JVM. Each result is checked against the reference before it is
// timed; each figure comes with its spread and its fraction of a ceiling measured in the same run.
#include <mamba4j.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <fstream>
#include <iostream>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>

#include "bench_models.h"
#include "bench_ops.h"
#include "ceilings.h"
#include "page.h"
#include "plan.h"
#include "random_model.h"
#include "report.h"

namespace {

void write(const std::string& path, const std::string& text) {
  std::ofstream out(path);
  out << text << std::flush;
  if (!out) throw std::runtime_error(path + " cannot be written");
}

void write_report(const std::string& folder) {
  nlohmann::ordered_json report;
  for (const char* part : {"native", "long", "java", "peers"}) {
    std::ifstream in(folder + "/" + part + ".json");
    if (in) report[part] = nlohmann::ordered_json::parse(in);
  }
  if (report.is_null()) throw std::runtime_error(folder + " holds no results");
  write(folder + "/report.json", report.dump(1) + "\n");
  write(folder + "/report.html", m4j::bench::page(report));
}

}  // namespace

int main(int argc, char** argv) {
  using namespace m4j::bench;
  CLI::App app{
      "Measures mamba4j's native library: ops, prefill and decode, each beside the ceiling of this machine.\n"
      "Example: m4j-bench --models mamba-130m,mamba2-130m --dtypes f32,bf16 --json out.json --html out.html"};
  Plan plan;
  std::string json_path, html_path, report_folder;
  bool long_contexts = false;
  bool check_only = false;
  app.add_option("--models", plan.models, "shapes to run, from --list")->delimiter(',')->capture_default_str();
  app.add_option("--dtypes", plan.dtypes, "weights: f32, f16, bf16, int8, int4; bf16/bf16: activations too")
      ->delimiter(',')
      ->capture_default_str();
  app.add_option("--prefill", plan.prefill_lengths, "prompt lengths")->delimiter(',')->capture_default_str();
  app.add_option("--decode", plan.decode_batches, "decode batch sizes")->delimiter(',')->capture_default_str();
  app.add_option("--context", plan.contexts, "context lengths for time per token")->delimiter(',')->capture_default_str();
  app.add_option("--threads", plan.threads, "thread counts; 0: the default of the engine")->delimiter(',')->capture_default_str();
  app.add_option("--simd", plan.simd_target, "instruction set instead of the best one");
  app.add_option("--repeat", plan.repeat, "samples a figure")->check(CLI::Range(1, 1000))->capture_default_str();
  app.add_flag("!--no-ops", plan.ops, "leave the single ops out");
  app.add_flag("--long", long_contexts,
               "small shapes over prompts up to 65,536 tokens and contexts up to 1,000,000, instead of the defaults");
  app.add_flag("--check-only", check_only, "only compare with the reference; nothing is timed");
  app.add_option("--json", json_path, "also write all figures to this file");
  app.add_option("--html", html_path, "also write a page with charts to this file");
  app.add_option("--report", report_folder,
                 "measure nothing: put this folder's native.json, long.json, java.json and peers.json, as far as they are "
                 "there, together as report.json and report.html");
  app.add_flag_callback(
      "--list",
      [] {
        for (const Shape& s : shapes()) std::printf("%s\n", s.name);
        throw CLI::Success();
      },
      "print the known shapes");
  CLI11_PARSE(app, argc, argv);

  try {
    if (!report_folder.empty()) {
      write_report(report_folder);
      return 0;
    }
    if (long_contexts) {
      plan.ops = false;
      if (app.count("--models") == 0) plan.models = {"mamba-tiny", "mamba2-tiny"};
      if (app.count("--dtypes") == 0) plan.dtypes = {"f32"};
      if (app.count("--prefill") == 0) plan.prefill_lengths = {16, 64, 256, 1024, 4096, 16384, 65536};
      if (app.count("--decode") == 0) plan.decode_batches = {1};
      if (app.count("--context") == 0) plan.contexts = {1, 1000, 10000, 100000, 1000000};
    }
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
    if (!json_path.empty()) write(json_path, report.json().dump(1) + "\n");
    if (!html_path.empty()) write(html_path, page({{long_contexts ? "long" : "native", report.json()}}));
  } catch (const std::exception& e) {
    std::fprintf(stderr, "m4j-bench: %s\n", e.what());
    return 1;
  }
  return 0;
}
