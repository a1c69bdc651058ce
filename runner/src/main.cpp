// Classifies images with the model of a bundle: what run.py does, for boards without Python.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <iostream>
#include <numeric>

#include "error.h"
#include "json.h"
#include "model.h"

namespace {

using edge::Bundle;
using edge::Error;
using edge::Model;
using Clock = std::chrono::steady_clock;

constexpr const char* kUsage =
    "usage: edge-runner BUNDLE [--self-test] [--time SECONDS] [--frame HEIGHTxWIDTH] [--logits] [--not-accepted] [FILE ...]\n"
    "Classifies images with the model in a bundle.\n"
    "  BUNDLE       the unpacked folder; every file is hashed and the golden outputs are compared before anything else\n"
    "  FILE         PNG, JPEG, PGM, PPM, .npy, or .raw as a camera gives it; one JSON line each. A folder stands for all\n"
    "               files below it, - for standard input, which names a file or folder in each line\n"
    "  --self-test  one JSON line with the verdict, exit status 0 or 1\n"
    "  --time       latency of one inference, measured for so long\n"
    "  --frame      size of .raw files; the network's, if left out\n"
    "  --logits     adds the logits, one number a class\n"
    "  --not-accepted  runs a bundle that missed a budget, to look at it\n"
    "  --help       prints this\n"
    "Exit status: 0 fine, 1 the bundle is not as it was built or missed a budget, 2 wrong input.\n";

struct Options {
  std::string bundle;
  std::vector<std::string> files;
  bool self_test = false, logits = false, not_accepted = false, help = false;
  double seconds = 0;
  edge::Size frame;
};

[[noreturn]] void fail_usage(const std::string& reason) { throw std::invalid_argument(reason + "\n" + kUsage); }

// A whole number below a million, or 0 where the text is none.
std::size_t parse_whole(const std::string& text) {
  const bool digits = !text.empty() && text.size() < 7 && text.find_first_not_of("0123456789") == std::string::npos;
  return digits ? std::stoul(text) : 0;
}

Options parse_options(const std::vector<std::string>& words) {
  Options options;
  for (std::size_t i = 0; i < words.size(); ++i) {
    const std::string& word = words[i];
    const auto value = [&]() -> const std::string& {
      if (i + 1 == words.size()) fail_usage(word + " needs a value");
      return words[++i];
    };
    if (word == "--self-test") {
      options.self_test = true;
    } else if (word == "--help" || word == "-h") {
      options.help = true;
      return options;
    } else if (word == "--logits") {
      options.logits = true;
    } else if (word == "--not-accepted") {
      options.not_accepted = true;
    } else if (word == "--time") {
      const std::string& text = value();
      char* end = nullptr;
      options.seconds = std::strtod(text.c_str(), &end);
      if (*end != '\0' || !(options.seconds > 0 && options.seconds <= 3600)) {
        fail_usage("--time " + text + ": expected seconds, up to 3600");
      }
    } else if (word == "--frame") {
      const std::string& text = value();
      const std::size_t middle = text.find('x');
      if (middle != std::string::npos) options.frame = {parse_whole(text.substr(0, middle)), parse_whole(text.substr(middle + 1))};
      if (!options.frame.height || !options.frame.width) fail_usage("--frame " + text + ": expected HEIGHTxWIDTH, such as 480x640");
    } else if (word.size() > 1 && word[0] == '-') {
      fail_usage("unknown option " + word);
    } else if (options.bundle.empty()) {
      options.bundle = word;
    } else {
      options.files.push_back(word);
    }
  }
  if (options.bundle.empty()) fail_usage("name a bundle");
  if (options.files.empty() && !options.self_test && options.seconds <= 0) fail_usage("name an image, or ask for --self-test or --time");
  return options;
}

std::unique_ptr<Model> open_checked(const Bundle& bundle) {
  if (bundle.runtime != edge::kRuntime) {
    throw Error("this program was built for " + std::string(edge::kRuntime) + ", the bundle is for " + bundle.runtime);
  }
  try {
    return edge::open_model(bundle);
  } catch (const Error&) {
    throw;
  } catch (const std::exception& reason) {
    throw Error(bundle.runtime + " " + edge::runtime_version() + " refuses " + bundle.model_files[0] + " (built with " +
                bundle.runtime_built + "): " + reason.what());
  }
}

// Largest difference to the golden outputs, in quantization steps. Throws Error where it is too large or the class another.
double compare_golden(const Bundle& bundle, Model& model) {
  double largest = 0;
  for (std::size_t i = 0; i < bundle.golden_images.size(); ++i) {
    const std::vector<float>& logits = model.infer(edge::normalise(bundle.golden_images[i], bundle.preprocess));
    const std::vector<float>& golden = bundle.golden_logits[i];
    for (std::size_t c = 0; c < golden.size(); ++c) {
      const double steps = std::fabs(double{logits[c]} - double{golden[c]}) / bundle.step;
      if (!(steps <= largest) && !std::isnan(largest)) largest = steps;  // NaN stays
    }
    std::vector<float> sorted = golden;
    std::sort(sorted.rbegin(), sorted.rend());
    const double margin = sorted.size() > 1 ? double{sorted[0]} - double{sorted[1]} : 0;
    const auto argmax = [](const std::vector<float>& of) { return std::max_element(of.begin(), of.end()) - of.begin(); };
    if (!(largest <= bundle.tolerance_steps) ||
        (argmax(logits) != argmax(golden) && margin > bundle.tolerance_steps * bundle.step)) {
      char text[96];
      std::snprintf(text, sizeof text, "golden outputs differ by %.1f quantization steps, allowed are %g", largest, bundle.tolerance_steps);
      throw Error(text);
    }
  }
  return largest;
}

// Four decimals, as Python prints round(value, 4).
std::string format_rounded(double value) {
  char text[32];
  std::snprintf(text, sizeof text, "%.4f", value);
  std::string rounded = text;
  while (rounded.back() == '0' && rounded[rounded.size() - 2] != '.') rounded.pop_back();
  return rounded;
}

// The line that run.py prints, with its spaces.
void print_prediction(const std::string& file, const std::vector<float>& logits, const Bundle& bundle, bool with_logits) {
  if (!std::all_of(logits.begin(), logits.end(), [](float logit) { return std::isfinite(logit); })) {
    throw Error(file + ": the model gives logits that are not finite");
  }
  std::vector<std::size_t> order(logits.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) { return logits[a] > logits[b]; });
  double sum = 0;
  for (const float logit : logits) sum += std::exp(double{logit} - double{logits[order[0]]});
  const auto probability = [&](std::size_t c) { return format_rounded(std::exp(double{logits[c]} - double{logits[order[0]]}) / sum); };
  std::string best;
  for (std::size_t i = 0; i < order.size() && i < 3; ++i) {
    best += (i ? ", " : "") + edge::quote_json(bundle.classes[order[i]]) + ": " + probability(order[i]);
  }
  std::string all;
  for (const float logit : logits) {
    char text[32];
    std::snprintf(text, sizeof text, "%s%.9g", all.empty() ? "" : ", ", double{logit});
    all += text;
  }
  std::cout << "{\"file\": " << edge::quote_json(file) << ", \"class\": " << edge::quote_json(bundle.classes[order[0]])
            << ", \"probability\": " << probability(order[0]) << ", \"best\": {" << best << "}"
            << (with_logits ? ", \"logits\": [" + all + "]" : "") << "}" << std::endl;
}

// One inference after another; the first quarter of the time warms up and is not counted.
void print_latency(const Bundle& bundle, Model& model, double seconds) {
  const std::vector<float> input = edge::normalise(bundle.golden_images[0], bundle.preprocess);
  const auto start = Clock::now();
  const auto elapsed = [&] { return std::chrono::duration<double>(Clock::now() - start).count(); };
  while (elapsed() < seconds / 4) model.infer(input);
  std::vector<double> latencies;
  do {
    const auto before = Clock::now();
    model.infer(input);
    latencies.push_back(std::chrono::duration<double, std::milli>(Clock::now() - before).count());
  } while (elapsed() < seconds);
  std::sort(latencies.begin(), latencies.end());
  const auto quantile = [&](double q) { return latencies[static_cast<std::size_t>(q * static_cast<double>(latencies.size() - 1))]; };
  char text[256];
  std::snprintf(text, sizeof text, "{\"p50_ms\": %.6f, \"p90_ms\": %.6f, \"runs\": %zu, \"threads\": %zu, \"runtime\": ", quantile(0.5),
                quantile(0.9), latencies.size(), bundle.threads);
  std::cout << text << edge::quote_json(bundle.runtime + " " + edge::runtime_version()) << "}" << std::endl;
}

// Calls `classify` with each file that a name stands for, in the order of run.py.
template <typename Classify>
void for_each_file(const std::string& name, const Classify& classify) {
  namespace fs = std::filesystem;
  if (name == "-") {
    for (std::string line; std::getline(std::cin, line);) {
      if (!line.empty() && line.back() == '\r') line.pop_back();
      if (!line.empty() && line != "-") for_each_file(line, classify);
      if (!std::cout) return;
    }
    return;
  }
  std::error_code failed;
  std::vector<fs::path> files;
  if (fs::is_directory(name, failed)) {
    const auto options = fs::directory_options::skip_permission_denied;
    for (fs::recursive_directory_iterator entry(name, options, failed), end; !failed && entry != end; entry.increment(failed)) {
      std::error_code gone;
      if (entry->path().filename().string().front() != '.' && fs::is_regular_file(entry->path(), gone)) files.push_back(entry->path());
    }
    std::sort(files.begin(), files.end());
  }
  if (files.empty()) classify(name);
  for (const fs::path& file : files) classify(file.string());
}

int run(const Options& options) {
  Bundle bundle;
  std::unique_ptr<Model> model;
  try {
    bundle = edge::load_bundle(options.bundle);
    if (!bundle.accepted && !options.not_accepted) {
      throw Error("this model missed a budget and was not accepted; --not-accepted runs it all the same");
    }
    model = open_checked(bundle);
    const double steps = compare_golden(bundle, *model);
    if (options.self_test) {
      std::cout << "{\"verdict\": \"PASS\", \"files\": " << bundle.files.size() << ", \"golden\": " << bundle.golden_images.size()
                << ", \"steps\": " << format_rounded(steps) << "}" << std::endl;
    }
  } catch (const std::exception& reason) {  // the runtimes have types of their own
    if (options.self_test) {
      std::cout << "{\"verdict\": \"FAIL\", \"reason\": " << edge::quote_json(reason.what()) << "}" << std::endl;
    } else {
      std::cerr << "FAIL: " << edge::escape_for_terminal(reason.what()) << std::endl;
    }
    return 1;
  }
  if (options.seconds > 0) print_latency(bundle, *model, options.seconds);
  int status = 0;
  const auto report = [&](const std::string& message) {  // the other files are read all the same
    std::cerr << "error: " << edge::escape_for_terminal(message) << std::endl;
    status = 2;
  };
  const auto classify = [&](const std::string& file) {
    if (!std::cout) return;
    try {
      const edge::Size frame = options.frame.height ? options.frame : bundle.preprocess.size;
      const std::vector<float>& logits = model->infer(edge::read_input(file, bundle.preprocess, frame));
      print_prediction(file, logits, bundle, options.logits);
    } catch (const Error& reason) {
      report(reason.what());
    } catch (const std::bad_alloc&) {
      report(file + " needs more memory than there is");
    } catch (const std::exception& reason) {  // the runtime's own
      report(file + ": " + reason.what());
    }
  };
  for (const std::string& name : options.files) for_each_file(name, classify);
  if (!std::cout.flush()) {
    std::cerr << "error: cannot write the predictions" << std::endl;
    return 2;
  }
  return status;
}

}  // namespace

int main(int count, char** words) {
  try {
    const Options options = parse_options({words + 1, words + count});
    if (options.help) {
      std::cout << kUsage << std::flush;
      return 0;
    }
    return run(options);
  } catch (const std::exception& reason) {
    std::cerr << "error: " << reason.what() << std::endl;
    return 2;
  }
}
