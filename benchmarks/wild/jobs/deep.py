"""Deep generative models: learned networks beside an amortized guide."""

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import TraceEnum_ELBO, config_enumerate
from torch import nn

from benchmarks.wild.jobs import Job, job


def mlp(inputs, hidden, *outputs):
    return nn.Sequential(nn.Linear(inputs, hidden), nn.Softplus(), nn.Linear(hidden, sum(outputs)))


def learned(kind, x, labels=None):
    """The job of a module that holds its model and its amortized guide; discrete sites, if any, are summed out."""

    def pair():
        net = kind()
        return net.model, net.guide

    options = {}
    if labels:
        options["elbo"] = lambda: TraceEnum_ELBO(max_plate_nesting=1)
        options["fitted"] = lambda guide: config_enumerate(guide, "parallel", expand=True)
    return Job(pair=pair, args=(x,), labels=labels, parameters=True, wrapped=True, **options)


def joined(*parts):
    """Features side by side, whatever batches enumeration has put before them."""
    batch = torch.broadcast_shapes(*(p.shape[:-1] for p in parts))
    return torch.cat([p.expand(*batch, -1) for p in parts], -1)


def normal(out, event=1):
    loc, raw = out.chunk(2, -1)
    return dist.Normal(loc, nn.functional.softplus(raw) + 1e-3).to_event(event)


@job("Pyro tutorial, variational autoencoder")
def vae():
    class VAE(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder, self.decoder = mlp(6, 5, 2, 2), mlp(2, 5, 6)

        def model(self, x):
            pyro.module("decoder", self.decoder)
            with pyro.plate("data", len(x)):
                z = pyro.sample("latent", dist.Normal(torch.zeros(2), 1.0).to_event(1))
                pyro.sample("obs", dist.Bernoulli(logits=self.decoder(z)).to_event(1), obs=x)

        def guide(self, x):
            pyro.module("encoder", self.encoder)
            with pyro.plate("data", len(x)):
                pyro.sample("latent", normal(self.encoder(x)))

    torch.manual_seed(0)
    return learned(VAE, (torch.rand(8, 6) < 0.5).float())


@job("Pyro, examples/vae/ss_vae_M2.py")
def ss_vae():
    class M2(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder_y, self.encoder_z, self.decoder = mlp(6, 5, 3), mlp(9, 5, 2, 2), mlp(5, 5, 6)

        def model(self, x, y=None):
            pyro.module("ss_vae", self)
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
                y = pyro.sample("y", dist.OneHotCategorical(torch.ones(3) / 3), obs=y)
                both = joined(z, y)
                pyro.sample("x", dist.Bernoulli(logits=self.decoder(both)).to_event(1), obs=x)

        def guide(self, x, y=None):
            with pyro.plate("data", len(x)):
                if y is None:
                    y = pyro.sample("y", dist.OneHotCategorical(logits=self.encoder_y(x)))
                both = joined(x, y)
                pyro.sample("z", normal(self.encoder_z(both)))

    torch.manual_seed(0)
    return learned(M2, (torch.rand(6, 6) < 0.5).float(), {"y": "decoder.0[1]/1"})


@job("scANVI, Pyro example: counts with library size, two levels of latents and a cell type")
def scanvi():
    class SCANVI(nn.Module):
        def __init__(self, genes=6, types=3):
            super().__init__()
            self.types, self.z2, self.x = types, mlp(2 + types, 5, 2, 2), mlp(2, 5, genes)
            self.theta = nn.Parameter(torch.ones(genes))
            self.enc_z2l, self.enc_y, self.enc_z1 = mlp(genes, 5, 2, 2, 1, 1), mlp(2, 5, types), mlp(2 + types, 5, 2, 2)

        def model(self, x):
            pyro.module("scanvi", self)
            with pyro.plate("batch", len(x)), pyro.poutine.scale(scale=0.1):
                z1 = pyro.sample("z1", dist.Normal(torch.zeros(2), 1.0).to_event(1))
                y = pyro.sample("y", dist.OneHotCategorical(torch.ones(self.types) / self.types))
                both = joined(z1, y)
                z2 = pyro.sample("z2", normal(self.z2(both)))
                library = pyro.sample("l", dist.LogNormal(torch.ones(1), 0.5).to_event(1))
                rate = (library * self.x(z2).softmax(-1) + 1e-6).log() - self.theta.exp().log()
                counts = dist.NegativeBinomial(self.theta.exp(), logits=rate)
                pyro.sample("x", counts.to_event(1), obs=x)

        def guide(self, x):
            with pyro.plate("batch", len(x)), pyro.poutine.scale(scale=0.1):
                loc, raw, l_loc, l_raw = self.enc_z2l(torch.log1p(x)).split([2, 2, 1, 1], -1)
                pyro.sample("l", dist.LogNormal(l_loc, nn.functional.softplus(l_raw)).to_event(1))
                z2 = pyro.sample("z2", dist.Normal(loc, nn.functional.softplus(raw)).to_event(1))
                y = pyro.sample("y", dist.OneHotCategorical(logits=self.enc_y(z2)))
                pyro.sample("z1", normal(self.enc_z1(joined(z2, y))))

    torch.manual_seed(0)
    return learned(SCANVI, torch.poisson(torch.rand(5, 6) * 3), {"y": "z2.0[1]/1"})


@job("Pyro, examples/dmm.py: deep Markov model, structured inference network")
def dmm():
    class DMM(nn.Module):
        def __init__(self, tones=4, width=3):
            super().__init__()
            self.emitter, self.gate, self.proposed = mlp(width, 5, tones), mlp(width, 5, width), mlp(width, 5, width)
            self.identity, self.scale = nn.Linear(width, width), nn.Linear(width, width)
            self.z0, self.q0 = nn.Parameter(torch.zeros(width)), nn.Parameter(torch.zeros(width))
            self.rnn, self.combine = nn.RNN(tones, 5, batch_first=True), nn.Linear(width, 5)
            self.loc, self.raw = nn.Linear(5, width), nn.Linear(5, width)

        def transition(self, z):
            gate, proposed = self.gate(z).sigmoid(), self.proposed(z)
            loc = (1 - gate) * self.identity(z) + gate * proposed
            return dist.Normal(loc, nn.functional.softplus(self.scale(torch.relu(proposed))) + 1e-3).to_event(1)

        def model(self, x):
            pyro.module("dmm", self)
            z = self.z0.expand(len(x), -1)
            with pyro.plate("sequences", len(x)):
                for t in pyro.markov(range(x.shape[1])):
                    z = pyro.sample(f"z_{t}", self.transition(z))
                    pyro.sample(f"x_{t}", dist.Bernoulli(logits=self.emitter(z)).to_event(1), obs=x[:, t])

        def guide(self, x):
            pyro.module("dmm", self)
            hidden, z = self.rnn(x.flip(1))[0].flip(1), self.q0.expand(len(x), -1)
            with pyro.plate("sequences", len(x)):
                for t in pyro.markov(range(x.shape[1])):
                    h = 0.5 * (torch.tanh(self.combine(z)) + hidden[:, t])
                    z = pyro.sample(
                        f"z_{t}", dist.Normal(self.loc(h), nn.functional.softplus(self.raw(h)) + 1e-3).to_event(1)
                    )

    torch.manual_seed(0)
    return learned(DMM, (torch.rand(4, 3, 4) < 0.5).float())
