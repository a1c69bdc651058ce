// Classifies pictures with the model of a bundle: what run.py does, for boards without Python.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <iostream>
#include <numeric>

#include "json.h"
#include "model.h"
#include "refused.h"

namespace {

using edge::Bundle;
using edge::Model;
using edge::Refused;
using Clock = std::chrono::steady_clock;

constexpr const char* kUsage =
    "usage: edge-runner BUNDLE [--self-test] [--time SECONDS] [--frame HEIGHTxWIDTH] [--logits] [FILE ...]\n"
    "  BUNDLE       the unpacked folder; every file is hashed and the golden inputs are answered before anything else\n"
    "  FILE         .png, .pgm, .ppm, .npy, or .raw as a camera gives it; one JSON line each\n"
    "  --self-test  one JSON line with the verdict, exit status 0 or 1\n"
    "  --time       how long one inference takes, measured for so long\n"
    "  --frame      size of .raw files; the network's, if left out\n"
    "  --logits     adds what the network answered, one number a class\n"
    "Exit status: 0 fine, 1 the bundle is not as it was built, 2 wrong input.\n";

struct Options {
  std::string bundle;
  std::vector<std::string> files;
  bool self_test = false, logits = false;
  double seconds = 0;
  edge::Size frame;
};

[[noreturn]] void usage(const std::string& wrong) { throw std::invalid_argument(wrong + "\n" + kUsage); }

// A whole number below a million, or 0 where the text is none.
std::size_t whole(const std::string& text) {
  const bool digits = !text.empty() && text.size() < 7 && text.find_first_not_of("0123456789") == std::string::npos;
  return digits ? std::stoul(text) : 0;
}

Options parse(const std::vector<std::string>& given) {
  Options found;
  for (std::size_t i = 0; i < given.size(); ++i) {
    const std::string& word = given[i];
    const auto value = [&]() -> const std::string& {
      if (i + 1 == given.size()) usage(word + " needs a value");
      return given[++i];
    };
    if (word == "--self-test") {
      found.self_test = true;
    } else if (word == "--logits") {
      found.logits = true;
    } else if (word == "--time") {
      const std::string& text = value();
      char* end = nullptr;
      found.seconds = std::strtod(text.c_str(), &end);
      if (*end != '\0' || !(found.seconds > 0 && found.seconds <= 3600)) usage("--time " + text + ": seconds, up to 3600, are wanted");
    } else if (word == "--frame") {
      const std::string& text = value();
      const std::size_t middle = text.find('x');
      if (middle != std::string::npos) found.frame = {whole(text.substr(0, middle)), whole(text.substr(middle + 1))};
      if (!found.frame.height || !found.frame.width) usage("--frame " + text + ": HEIGHTxWIDTH is wanted, such as 480x640");
    } else if (word.size() > 1 && word[0] == '-') {
      usage("unknown option " + word);
    } else if (found.bundle.empty()) {
      found.bundle = word;
    } else {
      found.files.push_back(word);
    }
  }
  if (found.bundle.empty()) usage("name a bundle");
  if (found.files.empty() && !found.self_test && found.seconds <= 0) usage("name a picture, or ask for --self-test or --time");
  return found;
}

std::unique_ptr<Model> opened(const Bundle& bundle) {
  if (bundle.runtime != edge::kRuntime) {
    throw Refused("this program was built for " + std::string(edge::kRuntime) + ", the bundle is for " + bundle.runtime);
  }
  try {
    return edge::open_model(bundle);
  } catch (const Refused&) {
    throw;
  } catch (const std::exception& reason) {
    throw Refused(bundle.runtime + " " + edge::runtime_version() + " refuses " + bundle.model[0] + " (built with " + bundle.runtime_built +
                  "): " + reason.what());
  }
}

// Largest difference to the golden answers, in quantization steps; refuses where it is too large or the class another.
double golden(const Bundle& bundle, Model& model) {
  double worst = 0;
  for (std::size_t i = 0; i < bundle.golden.size(); ++i) {
    const std::vector<float>& found = model.run(edge::normalised(bundle.golden[i], bundle.sees));
    const std::vector<float>& wanted = bundle.answers[i];
    for (std::size_t c = 0; c < wanted.size(); ++c) {
      const double away = std::fabs(double{found[c]} - double{wanted[c]}) / bundle.step;
      if (!(away <= worst) && !std::isnan(worst)) worst = away;  // what is not a number stays
    }
    std::vector<float> sorted = wanted;
    std::sort(sorted.rbegin(), sorted.rend());
    const double margin = sorted.size() > 1 ? double{sorted[0]} - double{sorted[1]} : 0;
    const auto best = [](const std::vector<float>& of) { return std::max_element(of.begin(), of.end()) - of.begin(); };
    if (!(worst <= bundle.tolerance) || (best(found) != best(wanted) && margin > bundle.tolerance * bundle.step)) {
      char text[96];
      std::snprintf(text, sizeof text, "golden outputs differ by %.1f quantization steps, allowed are %g", worst, bundle.tolerance);
      throw Refused(text);
    }
  }
  return worst;
}

std::string share(double value) {
  char text[32];
  std::snprintf(text, sizeof text, "%.4f", value);
  std::string found = text;
  while (found.back() == '0' && found[found.size() - 2] != '.') found.pop_back();
  return found;
}

void answer(const std::string& file, const std::vector<float>& logits, const Bundle& bundle, bool whole_answer) {
  if (!std::all_of(logits.begin(), logits.end(), [](float logit) { return std::isfinite(logit); })) {
    throw Refused(file + ": the model answers what is not a number");
  }
  std::vector<std::size_t> order(logits.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) { return logits[a] > logits[b]; });
  double sum = 0;
  for (const float logit : logits) sum += std::exp(double{logit} - double{logits[order[0]]});
  const auto probability = [&](std::size_t c) { return share(std::exp(double{logits[c]} - double{logits[order[0]]}) / sum); };
  std::string best;
  for (std::size_t i = 0; i < order.size() && i < 3; ++i) {
    best += (i ? ", " : "") + edge::quoted(bundle.classes[order[i]]) + ": " + probability(order[i]);
  }
  std::string rest;
  for (const float logit : logits) {
    char text[32];
    std::snprintf(text, sizeof text, "%s%.9g", rest.empty() ? "" : ", ", double{logit});
    rest += text;
  }
  std::cout << "{\"file\": " << edge::quoted(file) << ", \"class\": " << edge::quoted(bundle.classes[order[0]])
            << ", \"probability\": " << probability(order[0]) << ", \"best\": {" << best << "}"
            << (whole_answer ? ", \"logits\": [" + rest + "]" : "") << "}" << std::endl;
}

// One inference after another; the first quarter of the time warms up and is not counted.
void time_it(const Bundle& bundle, Model& model, double seconds) {
  const std::vector<float> input = edge::normalised(bundle.golden[0], bundle.sees);
  const auto start = Clock::now();
  const auto passed = [&] { return std::chrono::duration<double>(Clock::now() - start).count(); };
  while (passed() < seconds / 4) model.run(input);
  std::vector<double> taken;
  do {
    const auto before = Clock::now();
    model.run(input);
    taken.push_back(std::chrono::duration<double, std::milli>(Clock::now() - before).count());
  } while (passed() < seconds);
  std::sort(taken.begin(), taken.end());
  const auto at = [&](double part) { return taken[static_cast<std::size_t>(part * static_cast<double>(taken.size() - 1))]; };
  char text[256];
  std::snprintf(text, sizeof text, "{\"p50_ms\": %.6f, \"p90_ms\": %.6f, \"runs\": %zu, \"threads\": %zu, \"runtime\": ", at(0.5), at(0.9),
                taken.size(), bundle.threads);
  std::cout << text << edge::quoted(bundle.runtime + " " + edge::runtime_version()) << "}" << std::endl;
}

int run(const Options& options) {
  Bundle bundle;
  std::unique_ptr<Model> model;
  try {
    bundle = edge::load(options.bundle);
    model = opened(bundle);
    const double worst = golden(bundle, *model);
    if (options.self_test) {
      std::cout << "{\"verdict\": \"PASS\", \"files\": " << bundle.vouched << ", \"golden\": " << bundle.golden.size()
                << ", \"steps\": " << share(worst) << "}" << std::endl;
    }
  } catch (const std::exception& reason) {  // the runtimes have kinds of their own
    if (options.self_test) {
      std::cout << "{\"verdict\": \"FAIL\", \"reason\": " << edge::quoted(reason.what()) << "}" << std::endl;
    } else {
      std::cerr << "FAIL: " << edge::printable(reason.what()) << std::endl;
    }
    return 1;
  }
  if (options.seconds > 0) time_it(bundle, *model, options.seconds);
  int status = 0;
  for (const std::string& file : options.files) {
    try {
      const edge::Size frame = options.frame.height ? options.frame : bundle.sees.size;
      answer(file, model->run(edge::prepare(file, bundle.sees, frame)), bundle, options.logits);
    } catch (const Refused& reason) {  // the others are answered all the same
      std::cerr << "error: " << edge::printable(reason.what()) << std::endl;
      status = 2;
    } catch (const std::exception& reason) {  // no memory for it, or the runtime's own
      std::cerr << "error: " << edge::printable(file + ": " + reason.what()) << std::endl;
      status = 2;
    }
    if (!std::cout) break;
  }
  if (!std::cout.flush()) {
    std::cerr << "error: cannot write what was found" << std::endl;
    return 2;
  }
  return status;
}

}  // namespace

int main(int count, char** words) {
  try {
    return run(parse({words + 1, words + count}));
  } catch (const std::exception& reason) {
    std::cerr << "error: " << reason.what() << std::endl;
    return 2;
  }
}
