#include "bundle.h"

#include <cmath>
#include <sstream>

#include "json.h"
#include "refused.h"
#include "sha256.h"
#include "tensors.h"

namespace edge {
namespace {

constexpr std::size_t kLargestFile = std::size_t{1} << 31;
constexpr std::size_t kLargestText = std::size_t{1} << 24;
constexpr std::size_t kLongestName = 255;
constexpr std::size_t kLargestSide = 1 << 14;

// SHA256SUMS, by name.
std::map<std::string, std::string> listing(const std::string& folder) {
  std::map<std::string, std::string> found;
  const std::string where = folder + "/SHA256SUMS";
  try {
    const Bytes bytes = read_file(where, kLargestText);
    std::istringstream text(std::string(bytes.begin(), bytes.end()));
    for (std::string line; std::getline(text, line);) {
      const std::size_t gap = line.find("  ");
      if (gap == std::string::npos) throw Refused("no two columns");
      found[line.substr(gap + 2)] = line.substr(0, gap);
    }
  } catch (const Refused&) {
    throw Refused(where + " is missing or damaged; the bundle cannot be trusted");
  }
  return found;
}

void check_files(const std::string& folder, Bundle& bundle) {
  std::map<std::string, std::string> listed = listing(folder);
  for (const char* needed : {"manifest.json", "golden.npz"}) listed.emplace(needed, "");
  for (const auto& [name, digest] : listed) {
    const bool plain = !name.empty() && name.size() <= kLongestName && name.find_first_of("/\\\0", 0, 3) == std::string::npos;
    if (!plain || name == "." || name == ".." || digest.empty()) {
      throw Refused("SHA256SUMS does not vouch for " + name + "; the bundle cannot be trusted");
    }
    Bytes bytes;
    try {
      bytes = read_file(folder + "/" + name, kLargestFile);
    } catch (const Refused&) {  // said below
    }
    if (sha256(bytes) != digest) throw Refused(name + " is missing or was changed since the bundle was built; flash it again");
    bundle.files[name] = std::move(bytes);
  }
  bundle.vouched = listed.size();
}

float part(const Json& value, std::size_t at) {
  if (value.list().size() != 3) throw Refused("manifest.json: preprocess: three numbers are wanted, one a channel");
  return static_cast<float>(value.list()[at].number());
}

Preprocess preprocess(const Json& manifest) {
  const Json& given = manifest["preprocess"];
  const auto& sides = given["image_size"].list();
  if (sides.size() != 2) throw Refused("manifest.json: preprocess: image_size: height and width are wanted");
  Preprocess found;
  found.size = {sides[0].count(), sides[1].count()};
  if (found.size.height == 0 || found.size.width == 0 || found.size.height > kLargestSide || found.size.width > kLargestSide) {
    throw Refused("manifest.json: no network takes pictures of " + words(found.size));
  }
  const std::string& mode = given["mode"].text();
  if (mode != "gray" && mode != "rgb") throw Refused("manifest.json: preprocess: mode " + mode + "; gray and rgb are known");
  found.gray = mode == "gray";
  for (std::size_t i = 0; i < 3; ++i) {
    found.mean[i] = part(given["mean"], i);
    found.std[i] = part(given["std"], i);
    if (!(found.std[i] > 0)) throw Refused("manifest.json: preprocess: std is not above 0");
  }
  return found;
}

void read_manifest(Bundle& bundle) {
  const Json manifest = Json::parse(bundle.files["manifest.json"], "manifest.json");
  const double schema = manifest["schema"].number();
  if (schema != 1) throw Refused("manifest.json has schema " + std::to_string(schema) + "; this program reads 1");
  bundle.runtime = manifest["runtime"].text();
  bundle.runtime_built = manifest["runtime_version"][bundle.runtime].text();
  bundle.precision_hint = manifest["precision_hint"].text();
  bundle.threads = manifest["threads"].count();
  bundle.sees = preprocess(manifest);
  for (const Json& name : manifest["classes"].list()) bundle.classes.push_back(name.text());
  if (bundle.classes.empty()) throw Refused("manifest.json names no classes");
  for (const Json& name : manifest["model"]["files"].list()) {
    bundle.model.push_back(name.text());
    if (!bundle.files.count(name.text())) throw Refused("SHA256SUMS does not vouch for " + name.text() + "; the bundle cannot be trusted");
  }
  if (bundle.model.empty()) throw Refused("manifest.json names no model");
  bundle.step = manifest["golden"]["step"].number();
  bundle.tolerance = manifest["golden"]["tolerance_steps"].number();
  if (!(bundle.step > 0)) throw Refused("manifest.json: golden: step is not above 0");
}

void read_golden(Bundle& bundle) {
  const std::map<std::string, Tensor> arrays = read_npz(bundle.files["golden.npz"], "golden.npz");
  const auto pixels = arrays.find("pixels"), logits = arrays.find("logits");
  if (pixels == arrays.end() || logits == arrays.end()) throw Refused("golden.npz lacks pixels or logits");
  const Preprocess& sees = bundle.sees;
  const std::size_t count = logits->second.shape.empty() ? 0 : logits->second.shape[0];
  std::vector<std::size_t> wanted = {count, sees.size.height, sees.size.width};
  if (!sees.gray) wanted.push_back(3);
  if (count == 0 || pixels->second.dtype != "|u1" || pixels->second.shape != wanted ||
      logits->second.shape != std::vector<std::size_t>{count, bundle.classes.size()}) {
    throw Refused("golden.npz holds " + pixels->second.words() + " and " + logits->second.words() + ", which do not suit the manifest");
  }
  const std::size_t size = sees.size.height * sees.size.width * sees.channels();
  const std::vector<float> all = logits->second.floats();
  for (std::size_t i = 0; i < count; ++i) {
    const auto from = pixels->second.data.begin() + static_cast<std::ptrdiff_t>(i * size);
    bundle.golden.push_back({sees.size, sees.channels(), Bytes(from, from + static_cast<std::ptrdiff_t>(size))});
    const auto answer = all.begin() + static_cast<std::ptrdiff_t>(i * bundle.classes.size());
    bundle.answers.emplace_back(answer, answer + static_cast<std::ptrdiff_t>(bundle.classes.size()));
  }
}

}  // namespace

Bundle load(const std::string& folder) {
  Bundle found;
  check_files(folder, found);
  read_manifest(found);
  read_golden(found);
  return found;
}

}  // namespace edge
